"""The demo scenes, CamVid and Clothing Co-Parsing as MMSegmentation sees them."""

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
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS, MODELS
from pfb_mmseg.datasets import (
    CamVidDataset,
    CCPCoarseDataset,
    CCPDataset,
    PFBDemoDataset,
    WrongLabelsMixin,
)
from PIL import Image
from torch.utils.data import DataLoader

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.demo.scenes import CLASSES, KIND_SHARES
from pfb_mmseg.report.images import ImageSet

CONFIGS = Path(__file__).parents[1] / 'configs'
CAMVID = Path(__file__).parents[2] / 'shared' / 'camvid'
CCP = CAMVID.with_name('ccp')
LOAD = [dict(type='LoadDemoScene'), dict(type='LoadDemoLabels')]
PACK = dict(type='PackSegInputs')


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
    def test_same_seed_and_index_give_the_same_scene_for_any_length(self):
        one, other = demo(length=12), demo(length=60)
        for index in range(12):
            a, b = one[index], other[index]
            assert a['img_path'] == b['img_path']
            np.testing.assert_array_equal(a['img'], b['img'])
            np.testing.assert_array_equal(a['gt_seg_map'], b['gt_seg_map'])

    def test_who_reads_files_gets_the_scene_that_a_path_names(self):
        """As MMSegmentation's visualization hook does."""
        options = dict(split='val', length=5, size=(40, 72), seed=3)
        backend_args = PFBDemoDataset.file_backend(dict(type='PFBDemoDataset', **options))
        for scene in demo(**options):
            image = mmcv.imfrombytes(fileio.get(scene['img_path'], backend_args=backend_args))
            np.testing.assert_array_equal(image, scene['img'])
        assert PFBDemoDataset.file_backend({}) == dict(backend='demo_scenes')  # its own defaults
        with pytest.raises(ValueError, match='img_path must look like'):
            fileio.get('street.png', backend_args=backend_args)

    def test_another_seed_gives_other_scenes(self):
        one, other = demo(length=6), demo(length=6, seed=1)
        assert not any(np.array_equal(one[i]['img'], other[i]['img']) for i in range(6))

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
        pruner = BatchPruner(0.5, AdaptiveDensityEstimator(**config.model.pfb.estimator))
        dataset = demo(length=640)
        kept, candidates = Counter(), Counter()
        for batch in torch.randperm(640).view(-1, 16).tolist():
            images = np.stack([dataset[i]['img'] for i in batch]).astype(np.float32)
            with torch.no_grad():
                (features,) = encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 64 - 2)
            selection = pruner(features)
            if selection.log_density is not None:
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
            ('seed', -1),
            ('seed', 'zero'),
        ],
    )
    def test_bad_option_is_refused_by_name_and_value(self, option, value):
        with pytest.raises(ValueError) as error:
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


class TestCamVid:
    PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]

    def build(self, root, split='train', **options):
        prefix = dict(img_path=split, seg_map_path=f'{split}annot')
        return DATASETS.build(
            dict(type='CamVidDataset', data_root=str(root), data_prefix=prefix, **options)
        )

    def test_images_are_paired_with_their_label_maps(self, tmp_path):
        for folder in ('train', 'trainannot'):
            (tmp_path / folder).mkdir()
        labels = {'0001TP_1': 3, '0006R0_2': 255}
        for stem, label in labels.items():
            Image.new('RGB', (24, 18)).save(tmp_path / 'train' / f'{stem}.jpg')
            Image.new('L', (24, 18), label).save(tmp_path / 'trainannot' / f'{stem}.png')
        dataset = self.build(tmp_path, pipeline=self.PIPELINE)
        assert [Path(dataset[i]['img_path']).stem for i in range(2)] == list(labels)
        assert [set(np.unique(dataset[i]['gt_seg_map'])) for i in range(2)] == [{3}, {255}]

    def test_has_eleven_classes_with_distinct_colours(self):
        meta = CamVidDataset.METAINFO
        assert meta['classes'][0] == 'Sky' and meta['classes'][10] == 'Bicyclist'
        assert len(meta['classes']) == len({tuple(c) for c in meta['palette']}) == 11

    @pytest.mark.skipif(not CAMVID.is_dir(), reason='no CamVid frames at ../shared/camvid')
    @pytest.mark.parametrize('split, length', [('train', 367), ('val', 101)])
    def test_real_frames_load(self, split, length):
        dataset = self.build(CAMVID, split, pipeline=self.PIPELINE)
        assert len(dataset) == length
        frame = dataset[length - 1]
        assert frame['img'].shape == (360, 480, 3) and frame['gt_seg_map'].shape == (360, 480)
        assert set(np.unique(frame['gt_seg_map'])) <= {*range(11), 255}


def files(root, kind, split='train', labels='annot', **options):
    """A data set of files, loaded without augmentation."""
    prefix = dict(img_path=split, seg_map_path=f'{split}{labels}')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    return DATASETS.build(
        dict(type=kind, data_root=str(root), data_prefix=prefix, pipeline=pipeline, **options)
    )


def write_pairs(root, sizes, folders=('train', 'trainannot')):
    """Images of these (width, height), each of one label and one shade of its own."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for index, size in enumerate(sizes):
        shade = (index, index, index)
        Image.new('RGB', size, shade).save(root / folders[0] / f'{index:04d}.jpg', quality=100)
        Image.new('L', size, index).save(root / folders[1] / f'{index:04d}.png')


class TestClothing:
    @pytest.mark.parametrize(
        'kind, labels, num', [('CCPDataset', 'annot', 42), ('CCPCoarseDataset', 'coarse', 14)]
    )
    def test_photos_are_paired_with_the_label_maps_of_their_folder(
        self, tmp_path, kind, labels, num
    ):
        write_pairs(tmp_path, [(9, 12)] * num, ('train', f'train{labels}'))
        dataset = files(tmp_path, kind, labels=labels)
        assert len(dataset) == len(dataset.metainfo['classes']) == num
        for index in range(num):
            assert Path(dataset[index]['img_path']).name == f'{index:04d}.jpg'
            assert set(np.unique(dataset[index]['gt_seg_map'])) == {index}

    @pytest.mark.parametrize('kind, num', [(CCPDataset, 42), (CCPCoarseDataset, 14)])
    def test_classes_have_distinct_names_and_the_colours_of_vocs_rule(self, kind, num):
        classes, palette = kind.METAINFO['classes'], kind.METAINFO['palette']
        assert len(set(classes)) == len({tuple(colour) for colour in palette}) == num
        voc = PascalVOCDataset.METAINFO['palette']
        assert palette[:21] == voc[:num]

    @pytest.mark.skipif(not CCP.is_dir(), reason='no clothing photos at ../shared/ccp')
    def test_class_names_are_those_of_the_list_beside_the_photos(self):
        lines = (CCP / 'classes.txt').read_text().splitlines()
        assert CCPDataset.METAINFO['classes'] == tuple(line.split()[0] for line in lines)

    @pytest.mark.skipif(not CCP.is_dir(), reason='no clothing photos at ../shared/ccp')
    @pytest.mark.parametrize('split, length', [('train', 704), ('val', 150)])
    def test_real_photos_load_and_classes_fall_into_groups(self, split, length):
        fine = files(CCP, 'CCPDataset', split)
        coarse = files(CCP, 'CCPCoarseDataset', split, 'coarse')
        assert len(fine) == len(coarse) == length
        names = [kind.METAINFO['classes'] for kind in (CCPDataset, CCPCoarseDataset)]
        seen = set()
        for index in range(0, length, length // 10):
            photo, grouped = fine[index], coarse[index]
            assert photo['img'].shape[:2] == photo['gt_seg_map'].shape
            pairs = np.stack([photo['gt_seg_map'].ravel(), grouped['gt_seg_map'].ravel()])
            seen |= set(map(tuple, np.unique(pairs, axis=1).T.tolist())) - {(255, 255)}
        group = {names[0][one]: names[1][other] for one, other in seen}
        assert len(group) == len(seen), 'a class is in one group'
        assert group['null'] == 'background' and group['skin'] == 'skin'
        assert group['shoes'] == 'footwear' and group['hair'] == 'hair'


class TestWrongLabels:
    def test_that_share_of_the_scenes_has_the_labels_of_the_scene_named(self):
        right, wrong = demo(), demo(wrong_labels=0.25)
        index_of = {right.get_data_info(i)['img_path']: i for i in range(60)}
        num_wrong = 0
        for index in range(60):
            mine, own = wrong[index], right[index]
            assert mine['img_path'] == own['img_path']
            np.testing.assert_array_equal(mine['img'], own['img'])
            donor = index_of[mine.get('labels_of', own['img_path'])]
            num_wrong += donor != index
            np.testing.assert_array_equal(mine['gt_seg_map'], right[donor]['gt_seg_map'])
        assert num_wrong == 15

    def swaps(self, dataset):
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        return {info['img_path']: info['labels_of'] for info in infos if 'labels_of' in info}

    def test_the_draw_is_the_seeds(self):
        first, again = (self.swaps(demo(wrong_labels=0.2)) for _ in range(2))
        assert first == again
        assert first != self.swaps(demo(wrong_labels=0.2, wrong_labels_seed=1))

    def test_a_larger_share_holds_the_swaps_of_a_smaller_one(self):
        few, many = self.swaps(demo(wrong_labels=0.05)), self.swaps(demo(wrong_labels=0.2))
        assert (len(few), len(many)) == (3, 12)
        assert few.items() < many.items()

    def test_without_the_option_no_label_is_wrong(self):
        assert self.swaps(demo()) == self.swaps(demo(wrong_labels=0.0)) == {}

    def test_all_labels_can_be_wrong(self):
        swaps = self.swaps(demo(wrong_labels=1))
        assert len(swaps) == 60 and all(mine != theirs for mine, theirs in swaps.items())

    @pytest.mark.parametrize('kind', ['CamVidDataset', 'CCPDataset'])
    def test_files_keep_their_image_and_name(self, tmp_path, kind):
        write_pairs(tmp_path, [(16, 16)] * 8)
        dataset = files(tmp_path, kind, wrong_labels=0.5)
        wrong = 0
        for index in range(8):
            sample = dataset[index]
            assert Path(sample['img_path']).stem == f'{index:04d}'
            assert abs(sample['img'].astype(int) - index).max() <= 1
            (label,) = np.unique(sample['gt_seg_map'])
            assert label == int(Path(sample.get('labels_of', sample['img_path'])).stem)
            wrong += label != index
        assert wrong == 4

    def test_a_label_map_fits_the_image_it_is_put_on(self, tmp_path):
        sizes = [(16, 12), (16, 14), (20, 9)] * 3 + [(8, 8)]
        write_pairs(tmp_path, sizes)
        dataset = files(tmp_path, 'CCPDataset', wrong_labels=0.9)
        assert len(self.swaps(dataset)) == 9
        for index in range(10):
            assert dataset[index]['gt_seg_map'].shape == dataset[index]['img'].shape[:2]
        assert 'labels_of' not in dataset.get_data_info(9), 'there is none of its size'
        with pytest.raises(ValueError, match=r'set wrong_labels to 0\.9 or less'):
            files(tmp_path, 'CCPDataset', wrong_labels=1.0)

    def test_galleries_show_the_labels_that_a_run_sees(self, tmp_path):
        write_pairs(tmp_path, [(16, 16)] * 6)
        dataset = dict(
            type='CamVidDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='train', seg_map_path='trainannot'),
            wrong_labels=0.5,
        )
        images = ImageSet(Config(dict(train_dataloader=dict(dataset=dataset))))
        swaps = self.swaps(DATASETS.build(dataset))
        assert len(swaps) == 3
        for place, path in enumerate(images.paths):
            assert images.load(place)[1][0, 0] == int(Path(swaps.get(path, path)).stem)

    def test_any_data_set_gets_it_by_one_class_in_front(self, tmp_path):
        class Noisy(WrongLabelsMixin, BaseSegDataset):
            pass

        write_pairs(tmp_path, [(16, 16)] * 4)
        dataset = files(tmp_path, Noisy, wrong_labels=0.5, metainfo=dict(classes=tuple('abcd')))
        assert len(self.swaps(dataset)) == 2

    def test_a_data_set_without_labels_is_refused(self, tmp_path):
        write_pairs(tmp_path, [(16, 16)] * 4)
        options = dict(data_root=str(tmp_path), data_prefix=dict(img_path='train'))
        with pytest.raises(ValueError, match='seg_map_path'):
            CamVidDataset(wrong_labels=0.5, **options)

    @pytest.mark.parametrize(
        'option, value', [('wrong_labels', 1.5), ('wrong_labels', -0.1), ('wrong_labels_seed', -1)]
    )
    def test_bad_option_is_refused_by_name_and_value(self, option, value):
        with pytest.raises(ValueError) as error:
            demo(**{option: value})
        assert option in str(error.value) and repr(value) in str(error.value)
