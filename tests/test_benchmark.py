"""The arithmetic and the table of tools/benchmark.py, and the tool on a small model."""

import json
import os
import statistics
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pfb_mmseg.commands.main import call
from pfb_mmseg.compare.benchmark import (
    Report,
    Result,
    Spread,
    count_syncs,
    ideal_saving,
    time_in_turns,
)

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / 'configs' / 'demo'
PLAIN = DEMO / 'fcn_r18-d8_1xb16-300i_demo-64x64.py'
BLOCKED = DEMO / 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'
SMALL = ['--batch-size', '4', '--crop', '32', '64', '--steps', '2', '--warmup', '1']
# The narrowest network that the config allows, and centroids that one batch seeds.
NARROW = ['--cfg-options', 'model.backbone.base_channels=8', 'model.decode_head.in_channels=64']
NARROW += ['model.auxiliary_head.in_channels=32', 'model.pfb.estimator.num_centroids=4']
NARROW += ['model.pfb.estimator.dim=8']


def result(name='two_pass p=0.5', median=0.6, kept=0.5, ideal=0.45, memory=None):
    return Result(name, Spread(median, median, median), kept, 1 - median, ideal, memory)


class TestArithmetic:
    def test_spread_is_made_of_quartiles(self):
        assert Spread.of([5, 1, 3, 2, 4]) == Spread(3, 2, 4)
        assert Spread.of([7.0]) == Spread(7, 7, 7)

    def test_ideal_is_what_pruned_images_need_not_go_through(self):
        assert ideal_saving(0.3, 0.065) == pytest.approx(0.2805)
        assert ideal_saving(0.5, 0) == 0.5

    def test_share_of_the_ideal(self):
        assert result(median=0.6, ideal=0.5).of_ideal == pytest.approx(0.8)
        assert result(median=1, kept=1, ideal=0).of_ideal is None


class TestTurns:
    def test_every_workload_runs_once_a_round(self):
        calls, ticks = [], []
        seconds = time_in_turns(
            {name: lambda index, name=name: calls.append((index, name)) for name in 'abc'},
            rounds=3,
            warmup=2,
            synchronize=lambda: None,
            after_each=lambda: ticks.append(1),
        )
        assert sorted(calls) == [(index, name) for index in range(5) for name in 'abc']
        assert [index for index, _ in calls] == sorted(index for index, _ in calls)
        assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3, c=3)
        assert len(ticks) == 15

    def test_device_is_waited_for_before_the_clock_starts_and_stops(self):
        events = []
        workload = {'step': lambda index: events.append('step')}
        time_in_turns(workload, 2, 0, lambda: events.append('wait'), lambda: None)
        assert events == ['wait', 'step', 'wait'] * 2

    def test_no_round_is_begun_when_the_time_is_over_and_three_are_measured(self):
        calls = []
        seconds = time_in_turns(
            {'step': calls.append}, 9, 1, lambda: None, lambda: None, limit=1e-9
        )
        assert calls == [0, 1, 2, 3] and len(seconds['step']) == 3


class TestSyncs:
    def test_every_wait_that_torch_warns_of_is_counted_once(self, monkeypatch):
        modes = []
        monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
        monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)

        def step():
            assert modes == ['warn']
            for _ in range(3):  # from one place, which is shown once by default
                warnings.warn('called a synchronizing CUDA operation', stacklevel=1)
            warnings.warn('something else', stacklevel=1)

        assert count_syncs(step) == 3
        assert modes == ['warn', 'default']

    def test_torch_is_put_back_when_the_step_fails(self, monkeypatch):
        modes = []
        monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
        monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
        with pytest.raises(ZeroDivisionError):
            count_syncs(lambda: 1 / 0)
        assert modes[-1] == 'default'

    @pytest.mark.cuda
    def test_on_a_device_it_is_what_waits(self):
        x = torch.ones(3, device='cuda')
        assert count_syncs(lambda: x + 1) == 0
        assert count_syncs(lambda: (x.sum().item(), x.max().item())) == 2


class TestReport:
    def report(self):
        full = result('full', median=1, kept=1, ideal=0, memory=2**30)
        setting = {'device': 'a machine [two cores]', 'command': 'python ' + 'x' * 200}
        results = [full, result(memory=2**29), result('single_pass p=0.5', 0.7)]
        return Report(setting, results, 0.1, 0.00012, {'full': [1.0]})

    def test_table_shows_every_number_on_80_columns(self):
        console = Console(width=80, record=True, file=open(os.devnull, 'w'))
        self.report().show(console)
        text = console.export_text()
        assert 'a machine [two cores]' in text and 'x' * 200 in text
        rows = {line.split()[0]: line.split() for line in text.splitlines() if 'p=0.5' in line}
        assert rows['two_pass'][2:] == [
            *('50%', '0.600', '0.000', '40.0%', '45.0%', '88.9%', '0.50', '50%')
        ]
        assert rows['single_pass'][-2:] == ['–', '–']
        assert '10.00%' in text and '0.012%' in text

    def test_becomes_json_and_back(self):
        plain = json.loads(json.dumps(self.report().to_dict()))
        assert plain['results'][1]['of_ideal'] == pytest.approx(0.4 / 0.45)
        assert plain['results'][0]['of_ideal'] is None
        assert plain['seconds'] == {'full': [1.0]}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the tool with arguments, on the CPU unless told otherwise; returns its JSON."""

    def run_tool(*args, device='cpu'):
        out = tmp_path / 'out.json'
        command = ['benchmark.py', *map(str, args), '--device', device, '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', command)
        call('benchmark')
        return json.loads(out.read_text())

    return run_tool


class TestTool:
    @pytest.mark.parametrize('config', [PLAIN, BLOCKED], ids=['plain config', 'PFB config'])
    def test_measures_full_and_blocked_steps(self, run, capsys, config):
        args = ['--ratios', '0.5', '0.25', '--score-scale', '1', '0.5', '--no-memory']
        report = run(config, *SMALL, *args, *NARROW)
        rows = {row['name']: row for row in report['results']}
        assert list(rows) == [
            'full',
            'two_pass p=0.5',
            'two_pass p=0.25',
            'two_pass x0.5 p=0.5',
            'two_pass x0.5 p=0.25',
            'single_pass p=0.5',
            'single_pass p=0.25',
        ]
        assert [row['kept_share'] for row in rows.values()] == [1, 0.5, 0.75, 0.5, 0.75, 0.5, 0.75]
        for row in rows.values():
            expected = (1 - row['kept_share']) * (1 - report['shallow_share'])
            assert row['ideal'] == pytest.approx(expected)
            assert row['saved'] == pytest.approx(
                1 - row['step']['median'] / rows['full']['step']['median']
            )
        assert report['shallow_share'] > 0 and report['estimator_share'] > 0
        assert {len(seconds) for seconds in report['seconds'].values()} == {2}
        assert torch.__version__ in report['setting']['versions']
        assert 'benchmark.py' in report['setting']['command']
        assert 'two_pass p=0.25' in capsys.readouterr().out

    def test_takes_real_batches_and_mixed_precision(self, run):
        args = ['--real-data', '--amp', '--ratios', '0.5', '--strategies', 'two_pass']
        size = ['--batch-size', '4', '--steps', '1', '--warmup', '0', '--no-memory']
        report = run(PLAIN, *size, *args, *NARROW, 'train_dataloader.num_workers=0')
        assert report['results'][1]['kept_share'] == 0.5
        assert 'real' in report['setting']['batch'] and 'mixed' in report['setting']['precision']

    @pytest.mark.parametrize('criterion', ['hard', 'loss_topk'])
    def test_a_decision_that_reads_the_network_is_measured(self, run, criterion):
        args = ['--ratios', '0.5', '--strategies', 'two_pass', '--no-memory']
        report = run(PLAIN, *SMALL, *args, *NARROW, f'model.pfb.criterion={criterion}')
        scoring = report['seconds']['scoring and decision']
        both = statistics.median(scoring) / report['results'][0]['step']['median']
        assert report['estimator_share'] == pytest.approx(both - report['shallow_share'])
        assert report['results'][1]['kept_share'] == 0.5
        assert report['results'][1]['syncs'] is None  # there is no GPU

    @pytest.mark.usefixtures('one_thread')
    def test_takes_channels_last_and_a_compiler(self, run, monkeypatch):
        formats, backends = [], []

        def watch(function, backend):
            model = function.__self__
            weight = model.backbone.layer1[0].conv1.weight
            formats.append(weight.is_contiguous(memory_format=torch.channels_last))
            backends.append(backend)
            return function

        monkeypatch.setattr(torch, 'compile', watch)
        args = ['--ratios', '0.5', '--strategies', 'two_pass', '--no-memory', '--channels-last']
        report = run(PLAIN, *SMALL, *args, '--compile', 'eager', *NARROW)
        assert formats == [True] and backends == ['eager']
        assert 'channels_last, torch.compile (eager)' in report['setting']['precision']

    def test_ideal_is_that_of_the_images_really_kept(self, run):
        """Of 4 images 30 % cannot be pruned: one or two of them are."""
        args = ['--ratios', '0.3', '--strategies', 'two_pass', '--no-memory']
        row = run(PLAIN, *SMALL, *args, *NARROW)['results'][1]
        assert row['kept_share'] in (0.5, 0.625, 0.75)

    def test_sync_bn_becomes_bn(self, run):
        norm = [f'model.{part}.norm_cfg.type=SyncBN' for part in ('backbone', 'decode_head')]
        args = ['--ratios', '0.5', '--strategies', 'single_pass', '--no-memory']
        report = run(PLAIN, *SMALL, *args, *NARROW, *norm)
        assert 'SyncBN layers run as BN' in report['setting']['notes']

    @pytest.mark.slow
    @pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
    def test_memory_shrinks_with_the_batch(self, run):
        """In processes of their own, which have to import everything first."""
        size = ['--batch-size', '8', '--crop', '128', '256', '--steps', '1', '--warmup', '0']
        args = ['--ratios', '0.75', '--strategies', 'two_pass']
        full, blocked = run(PLAIN, *size, *args, *NARROW)['results']
        assert 0 < blocked['peak_memory'] < 0.6 * full['peak_memory']

    def test_survives_the_death_of_a_process_that_measures_memory(self, run, monkeypatch):
        def die(*args):
            raise BrokenProcessPool

        monkeypatch.setattr(ProcessPoolExecutor, 'submit', die)
        args = ['--ratios', '0.5', '--strategies', 'two_pass']
        variables = dict(os.environ)
        report = run(PLAIN, *SMALL, *args, *NARROW)
        assert [row['peak_memory'] for row in report['results']] == [None, None]
        assert 'memory of two_pass p=0.5' in report['setting']['notes']
        assert os.environ == variables  # what is set for those processes is not set here

    @pytest.mark.parametrize(
        'args, complaint',
        [
            (['no_such_config.py'], 'no_such_config.py'),
            ([PLAIN, '--ratios', '1'], '--ratios 1'),
            ([PLAIN, '--ratios', '0.5', '-0.2'], '--ratios'),
            ([PLAIN, '--score-scale', '2'], 'score_scale=2'),
            (
                [PLAIN, '--strategies', 'single_pass', '--score-scale', '0.5'],
                '--score-scale',
            ),
            ([PLAIN, '--steps', '0'], '--steps 0'),
            ([PLAIN, '--seconds', '0'], '--seconds 0'),
            ([PLAIN, '--warmup', '-1'], '--warmup -1'),
            ([PLAIN, '--batch-size', '0'], '--batch-size 0'),
            ([PLAIN, '--batch-size', '1'], '--batch-size'),
            ([PLAIN, '--crop', '0', '64'], '--crop 0'),
            ([PLAIN, '--strategies', 'three_pass'], 'three_pass'),
            ([PLAIN, '--real-data', '--crop', '64', '64'], '--real-data'),
            ([PLAIN, '--amp', 'float16'], 'bfloat16'),
        ],
    )
    def test_refuses_what_cannot_be_measured(self, run, capsys, args, complaint):
        with pytest.raises(SystemExit) as error:
            run(*args)
        assert error.value.code == 2
        assert complaint in capsys.readouterr().err.splitlines()[-1]

    @pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
    def test_refuses_a_device_that_is_not_there(self, run, capsys):
        with pytest.raises(SystemExit):
            run(PLAIN, device='cuda')
        assert '--device cuda' in capsys.readouterr().err
