"""PFBHook in real runs of MMEngine's Runner: schedule, log, record, refusals, resume."""

import re

import diary_rank
import processes
import pytest
import torch
from demo_runs import DEMO_CONFIG, check_against_diaries, demo_config, train
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend

from pfb_mmseg.hooks.step_clock import StepClock
from pfb_mmseg.report import SelectionRecord, read_scalars


def kept(work_dir):
    entries, _ = read_scalars(work_dir)
    return [round(entry['pfb/kept']) for entry in entries]


def test_the_schedule_prunes_between_begin_and_end_once_seeded(tmp_path):
    train(demo_config(tmp_path, custom_hooks=[dict(type='PFBHook', begin=2, end=0.75)]))
    # 8 centroids from 4 images a step: iterations 3 and 4 seed, 5 to 9 prune, then all is full.
    assert kept(tmp_path) == [4, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4, 4]


def test_the_log_names_the_blocking_point_and_the_share_of_the_forward_behind_it(tmp_path):
    train(demo_config(tmp_path, max_iters=3, log_level='INFO'))
    (log,) = tmp_path.glob('*/*.log')
    assert re.search(
        r'50% of the images behind backbone\.layer3 \(two_pass\) '
        r'and keeps those of lowest density\. '
        r'[6-9]\d% of the forward pass is still to come there; .*, in iterations 0 to 3 of 3',
        log.read_text(),
    )


def test_without_the_hook_the_ratio_is_constant(tmp_path):
    runner = train(demo_config(tmp_path, max_iters=4, custom_hooks=[]))
    assert len(runner.model.pfb.selection.indices) == 2


def test_each_interval_logs_totals_densities_centroids_and_time_saved(tmp_path):
    hook = dict(type='PFBHook', begin=2, end=1.0)
    train(demo_config(tmp_path, custom_hooks=[hook], **{'default_hooks.logger.interval': 5}))
    first, second = read_scalars(tmp_path)[0][:2]
    assert (first['pfb/kept'], first['pfb/candidates']) == (4 * 4 + 2 * 1, 20)
    assert (second['pfb/kept'], second['pfb/candidates']) == (10, 20)
    assert second['pfb/log_density_kept'] < second['pfb/log_density_dropped']
    assert second['pfb/centroids'] == 8
    assert second['pfb/time_saved'] < 1
    assert second['pfb/step_time_saved'] < 1
    assert 'pfb/nonfinite' not in second


def test_the_record_holds_what_happened(tmp_path):
    hooks = [dict(type='DiaryHook'), dict(type='PFBHook', begin=2, end=10)]
    train(demo_config(tmp_path, custom_hooks=hooks))
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert record.candidates.sum() == 6 * 4  # two iterations seed the centroids
    assert record.kept.sum() == 6 * 2
    assert all(path.startswith('demo/train/') for path in record.paths)
    check_against_diaries(record, tmp_path)


def test_two_processes_leave_one_record_and_a_single_one_goes_on_with_it(tmp_path):
    """Interrupted off the log's interval, so that what is fresh must be collected too."""
    options = ['default_hooks.checkpoint.interval=7', 'default_hooks.logger.interval=4']
    started = processes.start(diary_rank.run, tmp_path, *options, num_ranks=2)
    codes, outputs = processes.finish(started)
    assert all(codes), 'the run was to break down in iteration 9'
    assert 'the machine went down' in outputs[0]
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert len(list(tmp_path.glob('diary_*.jsonl'))) == 2
    check_against_diaries(record, tmp_path, until=7)

    for diary in tmp_path.glob('diary_*.jsonl'):  # what came behind the checkpoint is gone
        diary.write_text(''.join(diary.read_text().splitlines(keepends=True)[:7]))
    hooks = [dict(type='DiaryHook'), dict(type='PFBHook', begin=1, end=1.0)]
    config = demo_config(tmp_path, custom_hooks=hooks)
    config.resume = True
    train(config)
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    check_against_diaries(record, tmp_path)


def test_the_checkpoint_behind_the_last_iteration_holds_the_record_of_all_processes(tmp_path):
    """CheckpointHook saves it off its interval, too."""
    started = processes.start(diary_rank.run, tmp_path, 'fail_at=-1', num_ranks=2)
    codes, outputs = processes.finish(started)
    assert not any(codes), outputs
    checkpoint = torch.load(tmp_path / 'iter_12.pth', weights_only=False)
    record = SelectionRecord.from_bytes(checkpoint['pfb']['record'].numpy().tobytes())
    check_against_diaries(record, tmp_path)


@pytest.mark.parametrize('first', [True, False])
def test_bookkeeping_that_custom_hooks_lists_is_not_registered_a_second_time(tmp_path, first):
    listed = [dict(type='PFBLogHook'), dict(type='PFBRecordHook')]
    hooks = [dict(type='DiaryHook'), dict(type='PFBHook', begin=2, end=1.0)]
    train(demo_config(tmp_path, custom_hooks=[*listed, *hooks] if first else [*hooks, *listed]))
    entries, _ = read_scalars(tmp_path)
    assert sum(entry['pfb/candidates'] for entry in entries) == 12 * 4
    check_against_diaries(SelectionRecord.load(tmp_path / 'pfb_record.npz'), tmp_path)


def test_the_record_alone_needs_neither_schedule_nor_log(tmp_path):
    hooks = [dict(type='DiaryHook'), dict(type='PFBRecordHook')]
    train(demo_config(tmp_path, custom_hooks=hooks))
    check_against_diaries(SelectionRecord.load(tmp_path / 'pfb_record.npz'), tmp_path)
    assert not any('pfb/kept' in entry for entry in read_scalars(tmp_path)[0])


def test_validating_without_training_needs_nothing_of_a_training_run(tmp_path):
    config = demo_config(tmp_path)
    config.experiment_name = config.visualizer.name = 'test-val-only'
    Runner.from_cfg(config).val()
    assert not (tmp_path / 'pfb_record.npz').exists()


@VISBACKENDS.register_module()
class FakeBoard(BaseVisBackend):
    """What TensorBoard and the like get."""

    received = {}

    def _init_env(self):
        pass

    experiment = None

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        for name, value in scalar_dict.items():
            self.received.setdefault(name, {})[step] = value


def test_every_backend_of_the_visualizer_gets_the_scalars(tmp_path):
    FakeBoard.received.clear()
    config = demo_config(tmp_path, custom_hooks=[dict(type='PFBHook', begin=2, end=1.0)])
    config.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='FakeBoard')]
    train(config)
    entries, _ = read_scalars(tmp_path)
    for name in ('kept', 'candidates', 'log_density_kept', 'log_density_dropped', 'centroids',
                 'time_saved', 'step_time_saved'):  # fmt: skip
        logged = {e['step']: e[f'pfb/{name}'] for e in entries if f'pfb/{name}' in e}
        assert logged and FakeBoard.received[f'pfb/{name}'] == logged


def test_a_run_that_could_not_be_resumed_says_so_at_its_start_and_refuses_to_resume(
    tmp_path, monkeypatch
):
    monkeypatch.setattr('pfb_mmseg.hooks.preflight.why_no_resume', lambda *_: 'Old and new.')
    monkeypatch.setattr('demo_runs.why_no_resume', lambda *_: None)
    config = demo_config(tmp_path, max_iters=2, **{'default_hooks.checkpoint.interval': 2})
    train(config)
    (log,) = tmp_path.glob('*/*.log')
    assert 'cannot be resumed as things are. Old and new.' in log.read_text()
    config.resume = True
    with pytest.raises(RuntimeError, match='Old and new.'):
        train(config)


def test_the_hook_refuses_a_model_that_knows_nothing_of_pfb(tmp_path):
    config = Config(demo_config(tmp_path).to_dict())
    config.model.type = 'EncoderDecoder'
    config.model.pop('pfb')
    with pytest.raises(
        ValueError, match="PFBHook needs a model with PFBMixin.*'PFBEncoderDecoder'"
    ):
        train(config)


def test_demo_config_names_the_schedule_of_table_s5():
    (hook,) = Config.fromfile(DEMO_CONFIG).custom_hooks
    assert (hook.begin, hook.end) == (0.025, 0.9)


class TestStepClock:
    def clock(self, monkeypatch, *steps):
        """A clock that saw steps, each of the seconds waited before it and its own."""
        now = 0.0
        monkeypatch.setattr('time.perf_counter', lambda: now)
        clock = StepClock()
        for full, wait, seconds in steps:
            now += wait
            clock.start()
            now += seconds
            clock.stop(full)
        return clock

    def test_step_time_saved_is_measured_against_the_median_full_step(self, monkeypatch):
        clock = self.clock(
            monkeypatch,
            (True, 0, 9),
            (True, 0, 4),
            (True, 0, 1),
            (True, 0, 1),
            (False, 0, 0.25),
            (False, 0.75, 0.25),
        )
        # A full step takes 1 second, and the slow start is no loss.
        assert clock.step_time_saved == pytest.approx(2 * 0.75 / 5)

    def test_time_saved_is_of_the_wall_clock_with_the_waits_for_the_loader(self, monkeypatch):
        # The wait before the first step is the start of the loader, so that step is not counted.
        full = [(True, 9, 9), (True, 0.5, 1), (True, 0, 1), (True, 1, 1)]
        clock = self.clock(monkeypatch, *full, (False, 0.5, 0.5), (False, 1.5, 0.5))
        assert clock.step_time_saved == pytest.approx(2 * 0.5 / 5)
        assert clock.time_saved == pytest.approx(2 * (1.5 - 1.5) / (5 * 1.5))

    def test_what_is_no_training_is_no_wait(self, monkeypatch):
        now = 0.0
        monkeypatch.setattr('time.perf_counter', lambda: now)
        clock = StepClock()
        for full in (True, True, False, False):
            clock.start()
            now += 1 if full else 0.5
            clock.stop(full)
            clock.pause() if full is False else None
            now += 5 if full is False else 0
        assert clock.time_saved == clock.step_time_saved == pytest.approx(2 * 0.5 / 4)

    def test_without_a_full_step_nothing_is_claimed(self):
        clock = StepClock()
        for _ in range(2):
            clock.start()
            clock.stop(full=False)
        assert clock.time_saved is clock.step_time_saved is None

    def test_before_the_first_blocked_step_nothing_is_claimed(self):
        clock = StepClock()
        for _ in range(2):
            clock.start()
            clock.stop(full=True)
        assert clock.time_saved is clock.step_time_saved is None

    def test_state_survives_a_checkpoint(self):
        clock, other = StepClock(), StepClock()
        for full in (True, True, False):
            clock.start()
            clock.stop(full)
        other.load_state_dict(clock.state_dict())
        assert other.time_saved == clock.time_saved is not None
        assert other.step_time_saved == clock.step_time_saved is not None
