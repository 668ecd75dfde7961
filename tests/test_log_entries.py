"""The scalars in MMEngine's log: in its message hub, its line, its log_processor, its backends."""

import json
import re

import pytest
import torch
from demo_runs import ROOT, demo_config, train
from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from test_schedule import epochs

from pfb_mmseg.report import read_scalars

HOOK = dict(type='PFBHook', begin=2, end=9)
# A data set so large that LoggerHook has no end of an epoch to tell of.
LARGE = {'train_dataloader.dataset.length': 6000}


@HOOKS.register_module(force=True)
class Reader(Hook):
    """Somebody's own hook: reads all of PFB's scalars after each iteration, and keeps the steps."""

    priority = 'BELOW_NORMAL'

    def __init__(self):
        self.seen, self.selections = {}, {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        names = [n for n in runner.message_hub.log_scalars if n.startswith('train/pfb/')]
        self.seen[runner.iter + 1] = {
            name.removeprefix('train/'): float(runner.message_hub.get_scalar(name).current())
            for name in names
        }
        self.selections[runner.iter + 1] = runner.model.pfb.selection


def lines(work_dir):
    """What LocalVisBackend got, call by call, of those calls with scalars of PFB."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    entries = map(json.loads, file.read_text().splitlines())
    return [entry for entry in entries if 'pfb/kept' in entry]


def ours(entry):
    return {name: value for name, value in entry.items() if name.startswith('pfb/')}


def run(work_dir, hooks=(HOOK,), max_iters=12, **options):
    """The runner, what somebody's own hook saw, and the text of the log."""
    config = demo_config(work_dir, max_iters, log_level='INFO', **LARGE | options)
    config.custom_hooks = [*hooks, dict(type='Reader')]
    runner = train(config)
    reader = next(hook for hook in runner.hooks if isinstance(hook, Reader))
    (log,) = work_dir.glob('*/*.log')
    return runner, reader, log.read_text()


def test_hooks_the_line_of_the_log_and_the_backends_get_the_same_numbers_once(tmp_path):
    _, reader, log = run(tmp_path, **{'default_hooks.logger.interval': 5})
    entries = lines(tmp_path)
    assert [entry['step'] for entry in entries] == [5, 10, 12]
    assert ['loss' in entry for entry in entries] == [True, True, False]
    for entry in entries:
        assert reader.seen[entry['step']] == ours(entry)
    assert reader.seen[7] == reader.seen[5], 'a value stands until the next entry'
    for entry in entries[:2]:
        (line,) = re.findall(rf'Iter\(train\) \[ ?{entry["step"]}/12\].*', log)
        told = dict(re.findall(r'(pfb/\w+): (\S+)', line))
        assert told == {
            name: str(value) if isinstance(value, int) else f'{value:.4f}'
            for name, value in ours(entry).items()
        }
    assert {'pfb/kept', 'pfb/log_density_dropped', 'pfb/time_saved'} <= told.keys()
    assert sum(entry['pfb/candidates'] for entry in entries) == 12 * 4


@HOOKS.register_module(force=True)
class AsOnThePage(Hook):
    """Runs a line of Python in each iteration."""

    priority = 55

    def __init__(self, line):
        self.line, self.kept = line, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        names = {'runner': runner}
        exec(self.line, names)
        self.kept.append(names['kept'])


def test_the_hook_and_the_log_processor_of_the_page_see_them(tmp_path):
    page = ROOT / 'docs/reference/log-scalars.md'
    line, config = re.findall(r'^```python\n(.*?)^```$', page.read_text(), flags=re.M | re.S)
    hook = dict(type='AsOnThePage', line=line)
    options = Config.fromstring(config, '.py').to_dict()
    runner, *_ = run(tmp_path, [hook, HOOK], 24, **options)
    entries, _ = read_scalars(tmp_path)
    kept = [4] * 4 + [2] * 5 + [4] * 15  # of iterations 3 to 9 the first two seed
    assert [entry['pfb/kept'] for entry in entries] == kept
    [hook] = [hook for hook in runner.hooks if isinstance(hook, AsOnThePage)]
    assert hook.kept == kept
    for i in range(9, 24):
        assert entries[i]['kept_of_10'] == pytest.approx(sum(kept[i - 9 : i + 1]) / 10)


def test_a_loss_and_the_time_saved_are_not_averaged_a_second_time(tmp_path):
    options = {'model.pfb.criterion': 'hard', 'default_hooks.logger.interval': 3}
    runner, reader, _ = run(tmp_path, [dict(type='PFBHook', begin=2, end=1.0)], **options)
    assert runner.log_processor.window_size == 10
    entries = lines(tmp_path)
    for entry in entries[1:]:
        steps = [reader.selections[entry['step'] - i] for i in range(3)]
        score, kept = (torch.cat([getattr(s, name) for s in steps]) for name in ('score', 'kept'))
        assert entry['pfb/exit_loss_kept'] == pytest.approx(float(score[kept].mean()), rel=1e-5)
        assert entry['pfb/exit_loss_dropped'] == pytest.approx(float(score[~kept].mean()), rel=1e-5)
    clock = next(hook.clock for hook in runner.hooks if hasattr(hook, 'clock'))
    assert entries[-1]['pfb/time_saved'] == clock.time_saved
    assert entries[-1]['pfb/step_time_saved'] == clock.step_time_saved


@pytest.mark.parametrize('interval', [2, 50])
def test_in_a_run_by_epoch_they_are_in_each_line_of_the_logger(tmp_path, interval):
    config = demo_config(tmp_path, custom_hooks=[dict(type='PFBHook', begin=2, end=1.0)])
    config.default_hooks.logger.interval = interval
    train(epochs(config, num=4, batches=3))
    entries = lines(tmp_path)
    logged = [entry['step'] for entry in read_scalars(tmp_path)[0] if 'loss' in entry]
    assert logged == {2: [2, 5, 8, 11], 50: [3, 6, 9, 12]}[interval]
    assert [entry['step'] for entry in entries] == sorted({*logged, 12})
    assert sum(entry['pfb/candidates'] for entry in entries) == 12 * 4


def test_what_an_entry_does_not_have_is_not_repeated_and_a_resumed_run_misses_nothing(tmp_path):
    options = {'default_hooks.logger.interval': 3, 'default_hooks.checkpoint.interval': 12}
    _, reader, _ = run(tmp_path / 'a', **options)
    density = ['pfb/log_density_kept' in entry for entry in lines(tmp_path / 'a')]
    assert density == [False, True, True, False]  # pruned in iterations 5 to 9
    assert 'pfb/log_density_kept' not in reader.seen[12]

    config = demo_config(tmp_path / 'b', 15, log_level='INFO', custom_hooks=[HOOK], **LARGE)
    config.load_from, config.resume = str(tmp_path / 'a/iter_12.pth'), True
    train(config)
    *_, log = sorted((tmp_path / 'b').glob('*/*.log'))
    assert 'resumed key' not in log.read_text()


def test_names_with_hierarchy_are_read_as_those_without(tmp_path):
    run(tmp_path, **{'log_processor.log_with_hierarchy': True})
    entries, _ = read_scalars(tmp_path)
    assert [entry['pfb/kept'] for entry in entries] == [4] * 4 + [2] * 5 + [4] * 3
    assert all('loss' in entry for entry in entries)
