"""The demo scenes as MMSegmentation sees them."""

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS, MODELS
from torch.utils.data import DataLoader

from pfb_mmseg.core import BatchPruner
from pfb_mmseg.demo import PFBDemoDataset
from pfb_mmseg.demo.scenes import CLASSES, KIND_SHARES

CONFIGS = Path(__file__).parents[1] / 'configs'
LOAD = [dict(type='LoadDemoScene'), dict(type='LoadDemoLabels')]
PACK = dict(type='PackSegInputs')
# Of the first 100 scenes of each split, as published figures were measured on.
LABELS = '2ce42ebf85c4743f7ec120c5d62dad1411769493cca3c20d2981a8e13ec421c3'
MEANS = [114.2059, 124.9592, 109.5011]  # blue, green, red


@pytest.fixture(autouse=True)
def _mmseg_scope():
    init_default_scope('mmseg')


def demo(**options):
    return DATASETS.build(
        dict(type='PFBDemoDataset', **{'length': 60, 'pipeline': LOAD, **options})
    )


def kinds(dataset):
    return [dataset.kind_of(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]


class TestDemoScenes:
    def test_scenes_are_those_that_published_figures_are_of(self):
        scenes = [*demo(length=100), *demo(length=100, split='val')]
        labels = b''.join(scene['gt_seg_map'].tobytes() for scene in scenes)
        assert hashlib.sha256(labels).hexdigest() == LABELS
        # Rounding may differ by a grey level between processors.
        means = np.mean([scene['img'].mean((0, 1)) for scene in scenes], axis=0)
        assert means == pytest.approx(MEANS, abs=0.01)

    def test_an_index_gives_the_same_scene_for_any_length(self):
        one, other = demo(length=12), demo(length=60)
        for index in range(12):
            a, b = one[index], other[index]
            assert a['img_path'] == b['img_path']
            np.testing.assert_array_equal(a['img'], b['img'])
            np.testing.assert_array_equal(a['gt_seg_map'], b['gt_seg_map'])

    def test_who_reads_files_gets_the_scene_that_a_path_names(self):
        """As MMSegmentation's visualization hook does."""
        backend_args = dict(backend='demo_scenes', size=(40, 72))
        for scene in demo(split='val', length=5, size=(40, 72)):
            image = mmcv.imfrombytes(fileio.get(scene['img_path'], backend_args=backend_args))
            np.testing.assert_array_equal(image, scene['img'])
        with pytest.raises(ValueError, match='expected demo/<split>/<kind>/<index>.png'):
            fileio.get('street.png', backend_args=backend_args)

    def test_no_image_occurs_twice_within_or_across_splits(self):
        sets = demo(length=150), demo(length=150, split='val')
        images = [dataset[i]['img'].tobytes() for dataset in sets for i in range(150)]
        paths = [dataset[i]['img_path'] for dataset in sets for i in range(150)]
        assert len(set(images)) == len(set(paths)) == 300

    @pytest.mark.parametrize('split', ['train', 'val'])
    @pytest.mark.parametrize('length', [100, 2000])
    def test_kinds_have_their_unequal_shares(self, split, length):
        counts = Counter(kinds(demo(split=split, length=length)))
        for kind, share in KIND_SHARES.items():
            assert abs(counts[kind] - share * length) <= 2
        assert max(KIND_SHARES.values()) > 10 * min(KIND_SHARES.values())

    def test_some_classes_occur_in_rare_kinds_only(self):
        dataset = demo(length=300)
        found = {kind: set() for kind in KIND_SHARES}
        for index, kind in enumerate(kinds(dataset)):
            found[kind] |= set(np.unique(dataset[index]['gt_seg_map']))
        common = [labels for kind, labels in found.items() if KIND_SHARES[kind] > 0.1]
        rare_only = set().union(*found.values()) - set().union(*common)
        assert {CLASSES[label] for label in rare_only} == {'snow', 'lamp', 'sand', 'cactus'}

    def test_labels_are_classes_or_ignored_and_every_class_occurs(self):
        dataset = demo(length=200)
        labels = np.unique(np.stack([dataset[i]['gt_seg_map'] for i in range(200)]))
        assert set(labels) == {*range(len(dataset.metainfo['classes'])), 255}

    def test_images_look_as_if_loaded_from_files(self):
        scene = demo(size=(40, 72))[0]
        assert scene['img'].shape == (40, 72, 3) and scene['img'].dtype == np.uint8
        assert scene['gt_seg_map'].shape == (40, 72) and scene['gt_seg_map'].dtype == np.uint8
        assert scene['img_shape'] == scene['ori_shape'] == (40, 72)

    def test_images_are_in_bgr(self):
        dataset = demo(length=300)
        sand = CLASSES.index('sand')
        deserts = [i for i, kind in enumerate(kinds(dataset)) if kind == 'desert']
        pixels = np.concatenate(
            [dataset[i]['img'][dataset[i]['gt_seg_map'] == sand] for i in deserts]
        )
        blue, _, red = pixels.mean(axis=0)
        assert red > blue + 20

    def test_rare_kinds_look_rare_to_an_untrained_encoder(self):
        config = Config.fromfile(CONFIGS / 'demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py')
        torch.manual_seed(0)
        config.model.backbone.out_indices = (2,)
        encoder = MODELS.build(config.model.backbone)
        encoder.init_weights()
        pruner = BatchPruner(0.5, dict(type='rare', estimator=dict(num_centroids=64, dim=32)))
        dataset = demo(length=640)
        kept, candidates = Counter(), Counter()
        for batch in torch.randperm(640).view(-1, 16).tolist():
            images = np.stack([dataset[i]['img'] for i in batch]).astype(np.float32)
            with torch.no_grad():
                (features,) = encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 64 - 2)
            selection = pruner(features)
            if selection.score is not None:
                rare = [
                    KIND_SHARES[dataset.kind_of(dataset.get_data_info(i)['img_path'])] < 0.1
                    for i in batch
                ]
                candidates.update(rare)
                kept.update(rare[i] for i in selection.indices.tolist())
        assert kept[True] / candidates[True] > 1.3 * kept[False] / candidates[False]

    def test_kind_is_read_from_the_path(self):
        assert PFBDemoDataset.kind_of('demo/train/night/000123.png') == 'night'

    @pytest.mark.parametrize(
        'path', ['data/train/night/1.png', 'demo/train/moon/1.png', 'demo/test/night/1.png', '']
    )
    def test_foreign_path_has_no_kind(self, path):
        with pytest.raises(ValueError, match='img_path'):
            PFBDemoDataset.kind_of(path)

    @pytest.mark.parametrize(
        'option, value',
        [
            ('split', 'test'),
            ('length', 0),
            ('length', 2.5),
            ('size', (16, 64)),
            ('size', 64),
            ('size', (64, 64, 3)),
            ('size', (64.0, 64)),
        ],
    )
    def test_bad_option_is_refused_by_name_and_value(self, option, value):
        with pytest.raises((TypeError, ValueError)) as error:
            demo(**{option: value})
        assert option in str(error.value) and repr(value) in str(error.value)


class TestDemoPipeline:
    def test_flip_moves_image_and_labels_together(self):
        plain = demo()[0]
        flipped = demo(pipeline=[*LOAD, dict(type='RandomFlip', prob=1.0)])[0]
        np.testing.assert_array_equal(flipped['img'], plain['img'][:, ::-1])
        np.testing.assert_array_equal(flipped['gt_seg_map'], plain['gt_seg_map'][:, ::-1])

    def test_ordinary_transforms_apply(self):
        pipeline = [
            *LOAD,
            dict(type='RandomResize', scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='Pad', size=(48, 48)),
            PACK,
        ]
        packed = demo(pipeline=pipeline)[3]
        assert packed['inputs'].shape == (3, 48, 48)
        assert packed['data_samples'].gt_sem_seg.data.shape == (1, 48, 48)
        assert packed['data_samples'].img_path.startswith('demo/train/')

    def test_test_time_augmentation_keeps_labels_at_the_original_size(self):
        config = Config.fromfile(
            CONFIGS / '_base_/datasets/demo_64x64.py', import_custom_modules=False
        )
        plain = demo(split='val')[1]['gt_seg_map']
        packed = demo(split='val', pipeline=config.tta_pipeline, test_mode=True)[1]
        assert len(packed['inputs']) == 2 * len(config.img_ratios)
        for sample in packed['data_samples']:
            np.testing.assert_array_equal(sample.gt_sem_seg.data[0], plain)
        assert {tuple(x.shape[1:]) for x in packed['inputs']} == {(48, 48), (64, 64), (80, 80)}

    def test_subset_of_classes_is_renumbered(self):
        everything = demo()[0]['gt_seg_map']
        dataset = demo(metainfo=dict(classes=('tree', 'sky')))
        labels = dataset[0]['gt_seg_map']
        assert dataset.metainfo['classes'] == ('tree', 'sky')
        np.testing.assert_array_equal(labels == 1, everything == CLASSES.index('sky'))
        np.testing.assert_array_equal(labels == 0, everything == CLASSES.index('tree'))
        assert set(np.unique(labels)) <= {0, 1, 255}

    def test_iou_metric_gives_full_marks_to_the_labels_themselves(self):
        dataset = demo(split='val', pipeline=[*LOAD, PACK])
        metric = IoUMetric()
        metric.dataset_meta = dataset.metainfo
        for index in range(len(dataset)):
            sample = dataset[index]['data_samples']
            truth = dict(data=sample.gt_sem_seg.data)
            metric.process({}, [dict(pred_sem_seg=truth, gt_sem_seg=truth)])
        assert metric.evaluate(len(dataset))['mIoU'] == 100

    def test_copy_sent_to_a_worker_loads_the_same_images(self):
        dataset = demo(length=4)
        copy = pickle.loads(pickle.dumps(dataset))
        loader = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda x: x['img'])
        for index, image in enumerate(loader):
            np.testing.assert_array_equal(image, dataset[index]['img'])
            np.testing.assert_array_equal(copy[index]['img'], dataset[index]['img'])
