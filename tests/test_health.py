"""What PFBHook warns of, seen in runs that go wrong in that way."""

import numpy as np
import pytest
from demo_runs import demo_config, train
from mmengine.hooks import Hook
from mmseg.registry import DATASETS, HOOKS

from pfb_mmseg.demo.scenes import PFBDemoDataset
from pfb_mmseg.hooks.health import Health
from pfb_mmseg.hooks.step_clock import StepClock
from pfb_mmseg.report import read_scalars


def log_of(work_dir):
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()


def warnings_of(work_dir):
    return [line for line in log_of(work_dir).splitlines() if 'WARNING - PFB' in line]


# Two full steps, so that the time from one to the next is known.
HOOK = [dict(type='PFBHook', begin=2, end=1.0)]


def test_equal_images_are_told_of_once(tmp_path):
    options = {
        'train_dataloader.dataset.indices': 1,
        'model.pfb.criterion.estimator.num_centroids': 4,
        'default_hooks.logger.interval': 10,
    }
    train(demo_config(tmp_path, max_iters=30, custom_hooks=HOOK, **options))
    (told,) = warnings_of(tmp_path)
    assert 'same score' in told and 'block_after' in told


def test_a_run_as_it_should_be_warns_of_nothing(tmp_path):
    train(demo_config(tmp_path, max_iters=20, custom_hooks=HOOK, log_level='INFO'))
    assert [line for line in warnings_of(tmp_path) if 'more time' not in line] == []
    assert 'pfb/kept: 2  pfb/candidates: 4  ' in log_of(tmp_path)


def clock_of(blocked, full_wait=0.0, wait=0.0, num_blocked=60):
    """A clock that saw blocked steps of so many seconds, full ones being one second."""
    clock = StepClock()
    clock.load_state_dict(
        dict(
            full_times=[1.0],
            full_waits=[full_wait],
            blocked_time=blocked * num_blocked,
            blocked_wait=wait * num_blocked,
            num_blocked=num_blocked,
            num_steps=num_blocked,
        )
    )
    return clock


class FakeTime:
    now = 0.0


@DATASETS.register_module(force=True)
class SlowToLoad(PFBDemoDataset):
    """A quarter of a second for an image."""

    def prepare_data(self, index):
        FakeTime.now += 0.25
        return super().prepare_data(index)


@HOOKS.register_module(force=True)
class SlowToTrain(Hook):
    """And as much for training on it."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        selection = runner.model.pfb.selection
        FakeTime.now += 0.25 * (4 if selection is None else len(selection.indices))


def test_time_saved_counts_the_loading_and_a_loader_that_eats_it_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr('time.perf_counter', lambda: FakeTime.now)
    hooks = [dict(type='PFBHook', begin=4, end=1.0), dict(type='SlowToTrain')]
    options = {'train_dataloader.dataset.type': 'SlowToLoad', 'default_hooks.logger.interval': 60}
    options |= {'model.pfb.criterion': 'random', 'model.pfb.prune_ratio': 0.75}
    options |= {'default_hooks.checkpoint.interval': 20, 'log_level': 'INFO'}
    train(demo_config(tmp_path, max_iters=60, custom_hooks=hooks, **options))
    entry = read_scalars(tmp_path)[0][-1]
    # 56 of 60 iterations take 1 + 0.25 seconds, where full ones take 1 + 1. Of those, 54 of 57 are
    # counted: the first one and those after the two checkpoints are not.
    assert entry['pfb/step_time_saved'] == pytest.approx(54 * 0.75 / 57)
    assert entry['pfb/time_saved'] == pytest.approx(54 * 0.75 / (57 * 2))
    assert 'PFB: time saved 35.5% (of the steps alone 71.1%)' in log_of(tmp_path)
    (told,) = warnings_of(tmp_path)
    assert 'only 36% shorter' in told and 'num_workers' in told


class TestHealth:
    @pytest.fixture
    def said(self, monkeypatch):
        said = []
        monkeypatch.setattr(
            'pfb_mmseg.hooks.health.print_log', lambda message, **_: said.append(message)
        )
        return said

    def test_lost_time_is_told_of_once_there_are_enough_steps(self, said):
        health = Health()
        health.check(clock_of(blocked=1.25, num_blocked=10))
        assert said == []
        for _ in range(2):
            health.check(clock_of(blocked=1.25))
        (sentence,) = said
        assert '25% more time' in sentence and 'score_scale=0.5' in sentence

    def test_equal_scores_say_nothing_of_the_features_where_labels_may_be_the_cause(self, said):
        """Such as losses of 0 of images without a labelled pixel."""
        health = Health()
        health.see_scores(np.zeros(4))
        health.check(StepClock())
        (sentence,) = said
        assert 'same score' in sentence and 'labelled' in sentence
        assert 'are equal' not in sentence

    def test_a_loader_that_eats_the_saving_is_told_of_once(self, said):
        health = Health()
        health.check(clock_of(blocked=0.5, full_wait=0.5, wait=1.0, num_blocked=10))
        assert said == []
        for _ in range(2):
            clock = clock_of(blocked=0.5, full_wait=0.5, wait=0.75)
            health.check(clock)
        (sentence,) = said
        assert 'saves 50% of the time of the training steps' in sentence
        assert 'only 17% shorter' in sentence
        assert 'train_dataloader.num_workers' in sentence

    def test_a_loader_that_keeps_up_is_no_sign(self, said):
        health = Health()
        health.check(clock_of(blocked=0.5, full_wait=0.01, wait=0.01))
        health.check(clock_of(blocked=0.98, full_wait=0.02, wait=0.04))
        assert said == []
