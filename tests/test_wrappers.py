"""What a model may be wrapped in: the same images, the same weights, the same record as without.

Two real processes over gloo, in float64: no rounding error meets a tie between two images.
"""

from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import wrapped_rank
from demo_runs import check_against_diaries, demo_config
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.testing import assert_close
from wrapped_rank import FLEXIBLE, SAVED, WAYS, WRAPPERS

from pfb_mmseg.report import SelectionRecord

RANKS = 2


def launch(scenario, folder):
    """What each rank saw."""
    processes.run(scenario, folder, num_ranks=RANKS, timeout=900)
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    return launch(wrapped_rank.wrappers, tmp_path_factory.mktemp('wrappers'))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('strategies')
    return launch(wrapped_rank.strategies, folder), folder


def check_state(got, expected, rounding=1e-8):
    """Of the density the numbers, of the exit the bits as the numbers that they are of."""
    got, expected = (
        {**one, 'exit': one['exit'][1:].view(torch.float32)} for one in (got, expected)
    )
    assert_close(got, expected, rtol=rounding, atol=rounding)


class TestWrappers:
    @pytest.mark.parametrize('way', WAYS)
    def test_the_run_without_any_wrapper_of_its_own_prunes(self, seen, way):
        kept = [one[way, 'DDP']['kept'] for one in seen]
        assert all(len(images) == wrapped_rank.BATCH // 2 for one in kept for images in one)
        assert kept[0] != kept[1]

    @pytest.mark.parametrize('way', WAYS)
    @pytest.mark.parametrize('name', WRAPPERS)
    def test_every_wrapper_keeps_the_images_and_learns_the_weights_of_ddp(self, seen, way, name):
        for one in seen:
            got, expected = one[way, name], one[way, 'DDP']
            assert got['kept'] == expected['kept']
            # An exit of its own computes in float32.
            rounding = 1e-4 if 'own' in way else 1e-8
            for what in ('losses', 'weights', 'buffers'):
                if what == 'buffers' and 'checkpointed' in name:
                    continue  # BatchNorm counts a batch once more where it is recomputed
                assert_close(got[what], expected[what], rtol=rounding, atol=rounding)
            check_state(got['estimate'], expected['estimate'], rounding)

    def test_units_that_compute_in_half_precision_keep_one_estimate(self, seen):
        one, other = (rank['half'] for rank in seen)
        assert all(len(images) == wrapped_rank.BATCH // 2 for images in one['kept'])
        assert np.isfinite(one['losses']).all()
        for what in ('weights', 'estimate'):
            for name, tensor in one[what].items():
                assert torch.equal(tensor, other[what][name]), name


def assert_same_record(got, expected):
    assert got.paths == expected.paths
    for name in ('candidates', 'kept'):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@pytest.mark.slow
class TestStrategies:
    @pytest.mark.parametrize('name', FLEXIBLE)
    @pytest.mark.parametrize('part', ['whole', 'resumed'])
    def test_every_strategy_trains_and_resumes_as_ddp_does(self, runs, name, part):
        for one in runs[0]:
            got, expected = one[name, part], one['DDPStrategy', 'whole']
            assert_close(got['weights'], expected['weights'], rtol=1e-8, atol=1e-8)
            check_state(got['estimate'], expected['estimate'])

    @pytest.mark.parametrize('name', FLEXIBLE)
    def test_the_record_is_that_of_all_processes_at_a_checkpoint_and_behind_a_resumed_run(
        self, runs, name
    ):
        seen, folder = runs
        whole = SelectionRecord.load(folder / f'{name} whole' / 'pfb_record.npz')
        check_against_diaries(whole, folder / f'{name} whole')
        for one in seen:
            check_against_diaries(one[name, 'whole']['record'], folder / f'{name} whole', SAVED)
        resumed = SelectionRecord.load(folder / f'{name} resumed' / 'pfb_record.npz')
        assert_same_record(resumed, whole)


def flexible(config, strategy, **options):
    """A run of one process with a strategy of MMEngine's other runner."""
    config.merge_from_dict(options)
    config.strategy = strategy
    config.launcher = 'none'
    config.env_cfg = dict(cudnn_benchmark=False)
    # Runs that start in one second would share a log file: MMEngine names it after the time.
    config.experiment_name = Path(config.work_dir).as_posix().replace('/', '-')
    runner = FlexibleRunner.from_cfg(config)
    runner.train()
    return runner


class TestOneProcess:
    HOOK = dict(custom_hooks=[dict(type='PFBHook', begin=1, end=1.0)])
    SAVES = {'default_hooks.checkpoint.interval': 6}

    def test_single_device_strategy_trains_and_resumes(self, tmp_path):
        strategy = dict(type='SingleDeviceStrategy')
        whole = flexible(demo_config(tmp_path / 'a', 9, **self.HOOK, **self.SAVES), strategy)
        options = dict(load_from=str(tmp_path / 'a/iter_6.pth'), resume=True)
        resumed = flexible(demo_config(tmp_path / 'b', 9, **self.HOOK), strategy, **options)
        assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
        records = [SelectionRecord.load(tmp_path / run / 'pfb_record.npz') for run in 'ba']
        assert_same_record(*records)
