"""Samples are told apart by their place in the data set: slices of a file, repeats, joined sets."""

import numpy as np
import pytest
import torch
from demo_runs import demo_config, train
from mmcv.transforms import BaseTransform
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.hooks import Hook
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, HOOKS, TRANSFORMS
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader, Subset

from pfb_mmseg.data.places import PLACE, UNKNOWN, Places
from pfb_mmseg.report import SelectionRecord

SLICES = 4  # of each file


@TRANSFORMS.register_module(force=True)
class LoadSlice(BaseTransform):
    """An image as bright as its slice, all of one class."""

    def transform(self, results):
        brightness = 20 + 50 * results['slice']
        results['img'] = np.full((64, 64, 3), brightness, np.uint8)
        results['gt_seg_map'] = np.full((64, 64), results['slice'], np.uint8)
        results['img_shape'] = (64, 64)
        return results


@DATASETS.register_module(force=True)
class Slices(BaseSegDataset):
    """Several samples of each file; ``named=False``: of no file at all."""

    METAINFO = dict(classes=tuple('abcd'))

    def __init__(self, volumes=('x', 'y', 'z'), named=True, **options):
        self.volumes, self.named = volumes, named
        super().__init__(img_suffix='', seg_map_suffix='', **options)

    def load_data_list(self):
        return [
            {'slice': index} | ({'img_path': f'{volume}.nii'} if self.named else {})
            for volume in self.volumes
            for index in range(SLICES)
        ]

    def get_cat_ids(self, index):
        return [self.get_data_info(index)['slice']]


def slices(**options):
    pipeline = [dict(type='LoadSlice'), dict(type='PackSegInputs')]
    return dict(type='Slices', pipeline=pipeline, **options)


def built(**options):
    return DATASETS.build(dict(slices(**options), _scope_='mmseg'))


def told(dataset, num_workers=0):
    """Places that a loader's samples tell, in the order of the data set."""
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=list,
    )
    epochs = [
        [getattr(item['data_samples'], PLACE) for batch in loader for item in batch]
        for _ in range(2)
    ]
    assert epochs[0] == epochs[1]
    return epochs[0]


class TestPlaces:
    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_each_slice_of_a_file_has_a_place_of_its_own(self, num_workers):
        dataset = built()
        places = Places(dataset)
        assert places.num == 12
        assert places.of_index.tolist() == told(dataset, num_workers) == list(range(12))

    def test_a_repeated_sample_is_one(self):
        dataset = RepeatDataset(built(volumes=('x',)), times=3)
        places = Places(dataset)
        assert places.num == SLICES
        assert places.of_index.tolist() == told(dataset) == [0, 1, 2, 3] * 3

    def test_a_sample_that_balancing_repeats_is_one(self):
        inner = built(volumes=('x',), indices=[0, 1, 1, 1])
        dataset = ClassBalancedDataset(inner, oversample_thr=0.9)
        places = Places(dataset)
        assert len(dataset) > places.num == 4
        assert places.of_index.tolist() == told(dataset) == dataset.repeat_indices

    def test_joined_data_sets_are_counted_one_after_the_other_and_the_same_one_once(self):
        one, other = built(volumes=('x',)), slices(volumes=('x', 'y'), named=False)
        repeated = dict(type='RepeatDataset', dataset=other, times=2)
        dataset = ConcatDataset([one, dict(repeated, _scope_='mmseg'), one])
        places = Places(dataset)
        expected = [*range(4), *range(4, 12), *range(4, 12), *range(4)]
        assert places.num == 12
        assert places.of_index.tolist() == told(dataset) == expected

    def test_a_part_of_a_data_set_keeps_its_places(self):
        dataset = Subset(built(), [5, 2, 9])
        assert Places(dataset).of_index.tolist() == told(dataset) == [5, 2, 9]

    def test_to_ask_twice_changes_nothing(self):
        dataset = ConcatDataset([built(volumes=('x',)), built(volumes=('y',))])
        first, second = Places(dataset), Places(dataset)
        assert first.of_index.tolist() == second.of_index.tolist() == told(dataset)

    def test_what_has_no_length_has_no_places(self):
        assert Places(iter(())).num == 0


def sample(**metainfo):
    return SegDataSample(metainfo=metainfo)


class TestFind:
    """Of samples that do not tell their place, as those of workers that ran before."""

    def test_a_path_of_its_own_is_enough(self):
        dataset = built(volumes=('x', 'y'), indices=[1, 6])  # one slice of each
        found = Places(dataset).find([sample(img_path='y.nii'), sample(img_path='x.nii')])
        assert found.tolist() == [1, 0]

    def test_a_path_of_several_samples_is_not_but_with_the_index_it_is(self):
        places = Places(ConcatDataset([built(volumes=('x',)), built(volumes=('y', 'z'))]))
        bare, packed = sample(img_path='y.nii'), sample(img_path='y.nii', sample_idx=2)
        assert places.find([bare]).tolist() == [UNKNOWN]
        assert places.find([packed]).tolist() == [4 + 2]

    def test_what_is_not_of_the_data_set_has_no_place(self):
        places = Places(built())
        foreign = [sample(img_path='other.png'), sample(), torch.zeros(3)]
        assert places.find(foreign).tolist() == [UNKNOWN] * 3
        assert places.find(torch.zeros(2, 5)).tolist() == [UNKNOWN] * 2

    def test_a_batch_is_told_its_places_by_its_indices(self):
        places = Places(RepeatDataset(built(volumes=('x',)), times=2))
        samples = [sample(img_path='x.nii'), sample(img_path='x.nii'), sample(**{PLACE: 1})]
        places.mark(samples, np.array([6, 3, 0]))
        assert places.find(samples).tolist() == [2, 3, 1]
        places.mark(torch.zeros(3), np.array([6, 3, 0]))  # nothing to tell it to


@HOOKS.register_module(force=True)
class KeptSlices(Hook):
    """How often each sample was looked at and kept, by what the batch itself shows."""

    def __init__(self):
        self.counts = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for selection in runner.model.pfb.selections:
            for one, kept in zip(selection.samples, selection.kept.tolist(), strict=True):
                label = int(one.gt_sem_seg.data[0, 0, 0])
                key = getattr(one, 'img_path', None), label
                self.counts.setdefault(key, []).append(kept)


def run(work_dir, dataset, num_workers=0, **options):
    config = demo_config(work_dir, 10, log_level='INFO', **options)
    config.model.pfb.criterion = 'random'
    config.model.decode_head.num_classes = config.model.auxiliary_head.num_classes = 4
    loader = config.train_dataloader
    loader.dataset = dataset
    loader.num_workers, loader.persistent_workers = num_workers, num_workers > 0
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.custom_hooks = [dict(type='PFBHook', begin=1, end=1.0), dict(type='KeptSlices')]
    runner = train(config)
    [counts] = [hook.counts for hook in runner.hooks if isinstance(hook, KeptSlices)]
    [log] = work_dir.glob('*/*.log')
    return SelectionRecord.load(work_dir / 'pfb_record.npz'), counts, log.read_text()


def check(record, counts, name_of):
    expected = {name_of(*key): (len(kept), sum(kept)) for key, kept in counts.items()}
    counted = zip(record.candidates.tolist(), record.kept.tolist(), strict=True)
    assert dict(zip(record.places.tolist(), counted, strict=True)) == expected


def test_the_record_of_a_run_counts_each_slice_by_itself(tmp_path):
    record, counts, log = run(tmp_path, slices(), num_workers=2)
    check(record, counts, lambda path, label: 'xyz'.index(path[0]) * SLICES + label)
    assert {*record.paths} == {'x.nii', 'y.nii', 'z.nii'}
    assert 'do not tell which samples' not in log


def test_the_record_of_a_run_on_repeated_samples_without_a_path(tmp_path):
    dataset = dict(type='RepeatDataset', times=5, dataset=slices(volumes=('x',), named=False))
    record, counts, _ = run(tmp_path, dataset)
    check(record, counts, lambda path, label: label)
    assert {*record.paths} == {f'image {place}' for place in range(SLICES)}


@DATASETS.register_module(force=True)
class Forgetful(Slices):
    """Samples of which nothing tells which they are."""

    def get_data_info(self, index):
        info = super().get_data_info(index)
        info.pop('sample_idx')
        return info


def test_where_nothing_tells_samples_apart_the_log_says_so_once_and_no_row_is_written(tmp_path):
    record, counts, log = run(tmp_path, slices() | dict(type='Forgetful'))
    assert len(record) == 0
    assert record.class_counts.sum() == sum(map(len, counts.values())) * 64 * 64 == 9 * 4 * 64 * 64
    assert log.count('do not tell which samples of the training data set they are') == 1


def test_batches_that_are_loaded_in_part_learn_under_repeated_samples(tmp_path):
    """A run shorter than an epoch of the repeated data set: four samples, a hundred times."""
    options = {'default_hooks.logger.interval': 1}
    dataset = dict(type='RepeatDataset', times=100, dataset=slices(volumes=('x',)))
    config = demo_config(tmp_path, 12, **options)
    config.model.pfb.update(prune_ratio=0.75, criterion='hard')
    config.model.decode_head.num_classes = config.model.auxiliary_head.num_classes = 4
    loader = config.train_dataloader
    loader.dataset = dataset
    loader.batch_sampler = dict(type='PFBBatchSampler', skip_loading=0.5)
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.custom_hooks = [dict(type='PFBHook', begin=0.0, end=1.0), dict(type='KeptSlices')]
    runner = train(config)
    sampler = runner.train_dataloader.batch_sampler
    assert sampler.begin == 0
    state = sampler.state_dict()
    assert len(state['standing']) == SLICES and state['standing'].isfinite().all()
    [counts] = [hook.counts for hook in runner.hooks if isinstance(hook, KeptSlices)]
    loaded = sum(map(len, counts.values()))
    assert loaded < 12 * 4 * 0.75
