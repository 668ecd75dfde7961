"""Runs that are killed, and go on as if nothing had happened."""

import json
import random
import re
import time
from pathlib import Path

import interruptible
import numpy as np
import processes
import pytest
import torch
from demo_runs import demo_config, train
from following import Follow
from interruptible import ITERATIONS
from mmengine.config import Config
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.testing import assert_close

from pfb_mmseg.hooks.saved import drop_model_state
from pfb_mmseg.report import SelectionRecord

# How long something took is no decision.
TIMES = ('time', 'data_time', 'memory', 'pfb/time_saved', 'pfb/step_time_saved')
HOOK = dict(type='PFBHook', begin=0, end=1.0)


def kill_in(iteration, work_dir, num_ranks=1, delay=0.0):
    """Start or resume the run, and kill -9 all of it ``delay`` seconds into this iteration."""
    started = processes.start(interruptible.run, work_dir, num_ranks=num_ranks)
    try:
        while f'\niteration {iteration}\n' not in started[0].output:
            assert started[0].returncode is None, f'the run ended before iteration {iteration}'
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        processes.kill(started)


def finish(work_dir, num_ranks=1):
    """In processes too, so that every part of the run is the same arithmetic."""
    processes.run(interruptible.run, work_dir, num_ranks=num_ranks)


def log(work_dir):
    """What was logged in each iteration, without the times; one dict for each start of the run."""
    starts = []
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        starts.append({})
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            step = starts[-1].setdefault(entry['step'], {})
            step.update({k: v for k, v in entry.items() if k not in TIMES})
    return starts


def assert_same(interrupted, whole):
    """Log line by line, weights and state bit for bit, and the record."""
    (expected,) = log(whole)
    complete = {}
    for start in log(interrupted):
        for step, entry in start.items():
            # The run may have been killed between two lines of an iteration.
            assert entry.items() <= expected[step].items(), step
            complete[step] = entry
    assert complete == expected
    last, expected = (
        torch.load(f / f'iter_{ITERATIONS}.pth', weights_only=False) for f in (interrupted, whole)
    )
    for name, value in expected['state_dict'].items():
        assert torch.equal(last['state_dict'][name], value), name
    one, other = (SelectionRecord.load(f / 'pfb_record.npz') for f in (interrupted, whole))
    assert one.paths == other.paths
    np.testing.assert_array_equal(one.kept, other.kept)
    np.testing.assert_array_equal(one.candidates, other.candidates)
    np.testing.assert_allclose(one.mean_score, other.mean_score)


def test_a_run_killed_in_mid_interval_goes_on_as_the_one_that_was_not(tmp_path):
    kill_in(22, tmp_path / 'killed', delay=0.02)
    finish(tmp_path / 'killed')
    finish(tmp_path / 'whole')
    first, second = log(tmp_path / 'killed')
    assert first.keys() & second.keys()  # steps after the last checkpoint were repeated
    assert_same(tmp_path / 'killed', tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('num_ranks', [1, 2])
def test_a_run_killed_ten_times_goes_on_as_the_one_that_was_not(tmp_path, num_ranks):
    chance = random.Random(num_ranks)
    moments = sorted(chance.sample(range(1, ITERATIONS), 10))
    for iteration in moments:
        kill_in(iteration, tmp_path / 'killed', num_ranks, delay=chance.uniform(0, 0.2))
    finish(tmp_path / 'killed', num_ranks)
    finish(tmp_path / 'whole', num_ranks)
    assert_same(tmp_path / 'killed', tmp_path / 'whole')


def test_what_the_exit_has_learnt_goes_on_bit_for_bit_beside_an_average(tmp_path):
    """An exit of its own decides after ten steps, two before the checkpoint."""

    def run(folder, checkpoint=None):
        hooks = [HOOK, dict(type='EMAHook', momentum=0.3), dict(type='Follow')]
        saved = {'default_hooks.checkpoint.interval': 4}
        config = demo_config(tmp_path / folder, 16, custom_hooks=hooks, **saved)
        config.model.pfb = dict(prune_ratio=0.5, criterion='hard', exit='own')
        config.load_from, config.resume = checkpoint, checkpoint is not None
        runner = train(config)
        [follow] = [hook for hook in runner.hooks if isinstance(hook, Follow)]
        return torch.load(tmp_path / folder / 'iter_16.pth', weights_only=False), follow.kept

    whole, kept = run('whole')
    resumed, kept_after = run('resumed', str(tmp_path / 'whole' / 'iter_12.pth'))
    assert [len(images) for images in kept[12:]] == [2] * 4 and kept_after == kept[12:]
    exits = whole['state_dict']['pfb._extra_state'], resumed['state_dict']['pfb._extra_state']
    assert torch.equal(*exits) and int(exits[0][0]) == 16
    for name in ('state_dict', 'ema_state_dict'):
        for key, value in whole[name].items():
            assert torch.equal(resumed[name][key], value), key
    assert_close(resumed['optimizer'], whole['optimizer'], rtol=0, atol=0)


def resume(checkpoint, work_dir, **options):
    """Two iterations more, and what the log says of the start."""
    config = demo_config(work_dir, 6, log_level='INFO', custom_hooks=[HOOK], **options)
    config.load_from, config.resume = str(checkpoint), True
    runner = train(config)
    *_, file = sorted(work_dir.glob('*/*.log'))  # a refused start leaves one too
    return runner, file.read_text()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint after four iterations with PFB."""
    folder = tmp_path_factory.mktemp('trained')
    train(demo_config(folder, 4, custom_hooks=[HOOK], **{'default_hooks.checkpoint.interval': 4}))
    return folder / 'iter_4.pth'


def test_with_another_size_the_estimate_starts_afresh_and_the_rest_goes_on(trained, tmp_path):
    options = dict(num_centroids=6, dim=16)
    with pytest.warns(UserWarning, match=r'found one of shape \(8, 16\): the estimate starts af'):
        runner, _ = resume(trained, tmp_path, **{'model.pfb.criterion.estimator': options})
    pruner = runner.model.pfb.pruner
    assert pruner.step == 6  # of the quota and of the draws
    assert pruner.estimator.counts.sum() == 2 * 4  # both steps seed
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert record.candidates.sum() == 2 * 4  # two seeded before, two seed now


def test_a_checkpoint_without_pfb_gives_its_weights_and_the_log_says_what_starts_afresh(tmp_path):
    config = Config(demo_config(tmp_path / 'plain', 4, custom_hooks=[]).to_dict())
    config.model.type = 'EncoderDecoder'
    config.model.pop('pfb')
    config.default_hooks.checkpoint.interval = 4
    train(config)
    with pytest.warns(UserWarning, match='found none: the estimate starts afresh'):
        runner, text = resume(tmp_path / 'plain' / 'iter_4.pth', tmp_path / 'pfb')
    assert re.search('written without PFBHook.*the record of kept images and the clock start', text)
    assert runner.model.pfb.pruner.step == 2
    assert runner.iter == 6


@pytest.fixture(scope='module')
def other_data(tmp_path_factory):
    """A checkpoint of a run by the losses of an exit of its own, on two classes fewer."""
    folder = tmp_path_factory.mktemp('other')
    train(tuned(folder, None, 8, **{'default_hooks.checkpoint.interval': 8}))
    return folder / 'iter_8.pth'


def tuned(work_dir, load_from, num_iters=4, criterion='hard', **options):
    config = demo_config(work_dir, num_iters, log_level='INFO', custom_hooks=[HOOK], **options)
    config.model.pfb.update(criterion=criterion, exit='own')
    config.load_from = None if load_from is None else str(load_from)
    return config


class TestLoadFrom:
    def test_weights_come_along_and_pfb_starts_anew(self, other_data, tmp_path):
        runner = train(tuned(tmp_path, other_data))
        assert runner.model.pfb.pruner.step == 4
        assert not runner.model.pfb.ready, 'the exit of four steps warms up again'
        [log] = tmp_path.glob('*/*.log')
        assert log.read_text().count('PFB starts with new state') == 1
        record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
        assert record.candidates.sum() == 0

    def test_the_first_step_is_that_of_the_loaded_weights_with_a_new_density(
        self, trained, tmp_path
    ):
        config = demo_config(tmp_path, 2, custom_hooks=[HOOK])
        config.load_from = str(trained)
        config.optim_wrapper.optimizer.lr = 0.0
        model = train(config).model
        assert model.pfb.pruner.step == 2
        assert model.pfb.estimator.counts.sum() == 2 * 4  # two steps seed
        saved = torch.load(trained, weights_only=False)['state_dict']
        # The schedule does not let the rate fall to zero.
        weight, loaded = model.decode_head.conv_seg.weight, saved['decode_head.conv_seg.weight']
        torch.testing.assert_close(weight.detach(), loaded, rtol=0, atol=1e-3)

    def test_a_run_of_the_other_runner_starts_anew_too(self, trained, tmp_path):
        config = demo_config(tmp_path, 2, custom_hooks=[HOOK])
        config.load_from, config.launcher = str(trained), 'none'
        config.strategy, config.env_cfg = dict(type='SingleDeviceStrategy'), {}
        runner = FlexibleRunner.from_cfg(config)
        runner.train()
        assert runner.model.pfb.pruner.step == 2
        assert runner.model.pfb.estimator.counts.sum() == 2 * 4

    def test_every_way_to_the_state_of_pfb_is_found_and_nothing_else(self):
        ours = ['pfb._extra_state', 'module.pfb.pruner._extra_state', 'student.pfb.point.x']
        others = ['backbone.pfb', 'pfbnet.conv.weight', 'decode_head.conv_seg.bias']
        checkpoint = dict(state_dict=dict.fromkeys([*ours, *others]))
        assert drop_model_state(checkpoint) == 3
        assert [*checkpoint['state_dict']] == others
        assert drop_model_state(dict.fromkeys(ours)) == 3  # the file of a bare state dict


def test_a_checkpoint_of_another_schema_is_not_resumed(trained, tmp_path):
    checkpoint = torch.load(trained, weights_only=False)
    assert checkpoint['pfb']['schema'] == 1
    checkpoint['pfb']['schema'] = 7
    torch.save(checkpoint, tmp_path / 'newer.pth')
    with pytest.raises(ValueError, match='PFB state of schema 7, expected 1.*resume=False'):
        resume(tmp_path / 'newer.pth', tmp_path / 'run')
