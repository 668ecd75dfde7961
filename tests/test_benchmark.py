"""`pfb benchmark` on a small model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from pfb_mmseg.commands.main import main
from pfb_mmseg.compare.benchmark import Bench, measure

DEMO = Path(__file__).resolve().parents[1] / 'configs' / 'demo'
PLAIN = DEMO / 'fcn_r18-d8_1xb16-300i_demo-64x64.py'
BLOCKED = DEMO / 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'
CLASSIFIER = next(DEMO.parent.glob('cifar10/*_pfb-*.py'))
SMALL = ['--batch-size', '4', '--crop', '32', '64', '--steps', '2']
# The narrowest network that the config allows.
NARROW = ['--cfg-options', 'model.backbone.base_channels=8', 'model.decode_head.in_channels=64']
NARROW += ['model.auxiliary_head.in_channels=32']


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with arguments, on the CPU unless told otherwise; returns its JSON."""

    def run_tool(*args, device='cpu'):
        out = tmp_path / 'out.json'
        command = ['benchmark.py', *map(str, args), '--device', device, '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', command)
        main('benchmark')
        return json.loads(out.read_text())

    return run_tool


@pytest.mark.usefixtures('one_thread')
class TestTool:
    def test_measures_full_and_blocked_steps(self, run, capsys):
        report = run(BLOCKED, *SMALL, '--ratios', '0.5', '0.25', *NARROW)
        rows = {row['name']: row for row in report['results']}
        assert {name: (row['strategy'], row['kept_share']) for name, row in rows.items()} == {
            'full': (None, 1),
            'two_pass p=0.5': ('two_pass', 0.5),
            'two_pass p=0.25': ('two_pass', 0.75),
            'taught p=0.5': ('single_pass', 0.5),
            'taught p=0.25': ('single_pass', 0.75),
        }
        for row in rows.values():
            assert row['saved'] == pytest.approx(1 - row['median'] / rows['full']['median'])
        full, half = rows['full']['peak_memory'], rows['two_pass p=0.5']['peak_memory']
        assert half == pytest.approx(full / 2, rel=0.1)  # what two_pass keeps is of half the images
        assert half < rows['taught p=0.5']['peak_memory'] < full
        assert torch.__version__ in report['setting']['versions']
        assert 'two_pass p=0.25' in capsys.readouterr().out

    def test_a_recomputed_stage_keeps_less(self, run):
        plain, recomputed = (
            run(PLAIN, *SMALL, '--ratios', '0.5', *NARROW, *options)['results'][0]['peak_memory']
            for options in ([], ['activation_checkpointing=[backbone.layer1]'])
        )
        assert recomputed < plain

    def test_the_criterion_is_the_configs(self, run):
        report = run(PLAIN, *SMALL, *NARROW, 'model.pfb.criterion=rare')
        assert report['setting']['criterion'] == 'rare'
        assert all(row['kept_share'] < 1 for row in report['results'][1:])  # it is seeded

    def test_compiles_if_the_config_says_so_and_takes_sync_bn(self, run, monkeypatch):
        backends = []

        def watch(function, backend):
            backends.append(backend)
            return function

        monkeypatch.setattr(torch, 'compile', watch)
        options = ['compile.backend=eager', 'model.backbone.norm_cfg.type=SyncBN']
        run(PLAIN, *SMALL, '--ratios', '0.5', *NARROW, *options)
        assert backends == ['eager']

    @pytest.mark.parametrize(
        'args, complaint',
        [
            (['no_such_config.py'], 'no_such_config.py'),
            ([PLAIN, '--ratios', '1'], "--ratios: '1'"),
            ([PLAIN, '--ratios', '0.5', '-0.2'], '--ratios'),
            ([PLAIN, '--steps', '0'], "--steps: '0'"),
            ([PLAIN, '--batch-size', '0'], "--batch-size: '0'"),
            ([PLAIN, '--batch-size', '1'], '--batch-size'),
            ([PLAIN, '--crop', '0', '64'], "--crop: '0'"),
            ([PLAIN, '--amp'], 'mixed precision needs a GPU'),
            ([CLASSIFIER], "model.type='PFBImageClassifier' has no decode_head: only segmentors"),
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


class Clock:
    """A second for each image that is trained on."""

    def __init__(self, bench):
        self.bench = bench
        self.now = 0.0

    def step(self, name, index):
        kept = type(self.bench).step(self.bench, name, index)
        self.now += kept
        return kept


@pytest.mark.usefixtures('one_thread')
def test_median_and_saving_are_those_of_the_clock(monkeypatch):
    from mmengine.config import Config

    bench = Bench(Config.fromfile(PLAIN), [0.5], 'cpu', batch_size=4, crop=(32, 32))
    clock = Clock(bench)
    monkeypatch.setattr(bench, 'step', clock.step)
    monkeypatch.setattr('time.process_time', lambda: clock.now)
    full, *blocked = measure(bench, 3, Progress(disable=True))
    assert (full.median, full.saved) == (4, 0)
    assert [(one.median, one.saved) for one in blocked] == [(2, 0.5)] * 2
