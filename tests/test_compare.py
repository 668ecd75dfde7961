"""tools/compare.py: whole comparisons of tiny runs, interruption, mistakes, and its figures."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from test_tools import CONFIG, write_data

import pfb_mmseg
from pfb_mmseg.compare import runs
from pfb_mmseg.compare.comparison import Outcome, equal_iters, markdown, summarise
from pfb_mmseg.report.versions import this_code

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools/compare.py'
VALIDATION = """
val_dataloader = test_dataloader
val_evaluator = test_evaluator
val_cfg = dict(type='ValLoop')
param_scheduler = [dict(type='PolyLR', end=4, by_epoch=False)]
default_hooks.update(logger=dict(type='LoggerHook', interval=3))
pfb = dict(criterion=dict(type='rare', estimator=dict(num_centroids=4)))
model.update(pfb=pfb, type='PFBEncoderDecoder')
custom_imports = dict(imports=['pfb_mmseg'])
custom_hooks = [dict(type='PFBHook', begin=0, end=1.0)]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('compare')
    write_data(folder)
    (folder / 'small.py').write_text(CONFIG + VALIDATION)
    return folder


def start(folder, *arguments, command=(TOOL, 'small.py')):
    return subprocess.Popen(
        [sys.executable, *map(str, command), *arguments],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'COLUMNS': '200'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def compare(folder, monkeypatch):
    """The tool in this process, its runs in processes of their own; returns all rows' figures."""
    monkeypatch.chdir(folder)
    for name, value in (('PYTHONPATH', ROOT), ('OMP_NUM_THREADS', 1), ('COLUMNS', 200)):
        monkeypatch.setenv(name, str(value))

    def call(*arguments, work_dir):
        arguments = [*arguments, '--work-dir', work_dir]
        monkeypatch.setattr('sys.argv', ['compare.py', 'small.py', *arguments])
        runpy.run_path(str(TOOL), run_name='__main__')
        return json.loads(Path(work_dir, 'small/comparison.json').read_text())['runs']

    return call


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('finished')}


@pytest.mark.slow
def test_a_killed_comparison_goes_on_without_losing_a_finished_run(folder):
    arguments = ['--methods', 'full', 'short', 'random', '--ratios', '0.5', '--seeds', '0']
    arguments += ['--work-dir', 'out']
    root = folder / 'out/small'
    killed = start(folder, *arguments)
    while killed.poll() is None and not stamps(root):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = stamps(root)
    assert 0 < len(before) < 3

    again = start(folder, *arguments)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    after = stamps(root)
    assert len(after) == 3
    assert {path: after[path] for path in before} == before

    for sentence in ('random-p50', 'short-p50-as-random', 'compared with full'):
        assert sentence in output
    check_files(root)


def check_files(root):
    everything = json.loads((root / 'comparison.json').read_text())
    runs = {run['row']: run for run in everything['runs']}
    assert list(runs) == ['full', 'short-p50-as-random', 'random-p50']
    full, short, random = (runs[name] for name in ('full', 'short-p50-as-random', 'random-p50'))
    assert full['candidates'] == full['backward'] == random['candidates'] == 16
    assert random['loaded'] == 16 and random['deep'] == random['backward'] == 8
    once = full['startup_cpu_seconds']
    share = (random['cpu_seconds'] - once) / (full['cpu_seconds'] - once)
    assert short['iterations'] == max(1, round(4 * min(max(share, 0.4), 2.5)))
    config = Config.fromfile(root / 'configs/short-p50-as-random_seed0.py')
    assert config.param_scheduler[0].end == config.train_cfg.max_iters == short['iterations']
    assert '| random-p50 |' in (root / 'table.md').read_text()
    assert (root / 'comparison.png').stat().st_size > 1000


def test_methods_ratios_and_variants_make_rows(folder, compare):
    arguments = ['--methods', 'full', 'infobatch', '--ratios', '0.25', '--variants', 'slow:']
    arguments[-1] += 'optim_wrapper.optimizer.lr=0.001'
    arguments += ['--seeds', '1', '--iters', '1']  # too few for an entry of MMEngine's in the log
    runs = compare(*arguments, work_dir='two')
    assert [run['row'] for run in runs] == ['full', 'infobatch-p25', 'slow']
    assert all(run['iterations'] == run['seed'] == 1 for run in runs)
    assert all(run['candidates'] == 4 for run in runs)
    config = Config.fromfile(folder / 'two/small/configs/slow_seed1.py')
    assert config.optim_wrapper.optimizer.lr == 0.001


def test_long_and_small_get_the_time_of_full_data(folder, compare):
    arguments = ['--methods', 'full', 'random', 'small', 'long', '--ratios', '0.5']
    runs = {run['row']: run for run in compare(*arguments, '--seeds', '0', work_dir='equal')}
    root = folder / 'equal/small'
    assert list(runs) == ['full', 'small-p50', 'random-p50', 'long-random-p50']
    full, small, random, long = runs.values()

    pace = json.loads((root / 'small-p50-pace/seed0/budget.json').read_text())
    assert pace['iterations'] == 20
    assert (
        small['iterations']
        == equal_iters(Outcome(**full), outcome('pace', 0, 0.0, **pace), 'cpu', 0.5)[0]
    )
    assert small['iterations'] <= 4 * 1.25 / 0.5  # however long the run is that tells the pace
    assert small['backward'] == small['candidates'] == small['loaded'] == 2 * small['iterations']
    assert 0 <= pace['startup_seconds'] < pace['seconds']
    assert long['iterations'] == equal_iters(Outcome(**full), Outcome(**random), 'cpu', 0.5)[0]
    assert config_of(root, 'full').train_dataloader.num_workers == 0
    assert long['candidates'] == 4 * long['iterations']
    for name in ('small-p50', 'long-random-p50'):
        config = config_of(root, name)
        assert config.param_scheduler[0].end == runs[name]['iterations']


def config_of(root, row):
    return Config.fromfile(root / f'configs/{row}_seed0.py')


STUB = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1], '20260101_000000/vis_data')
folder.mkdir(parents=True)
(folder / 'scalars.json').write_text(json.dumps(dict(step=1, mIoU=50.0)) + chr(10))
"""


class TestReuse:
    """What becomes of a finished run; a stub takes the place of `pfb train`."""

    @pytest.fixture(autouse=True)
    def code(self, tmp_path, monkeypatch):
        """A checkout, whose package takes the place of this one."""
        (tmp_path / 'stub.py').write_text(STUB)
        (tmp_path / 'config.py').write_text('lr = 1')
        package = tmp_path / 'checkout/pfb_mmseg'
        package.mkdir(parents=True)
        (package / '__init__.py').write_text('a = 1')
        self.commit(tmp_path)
        monkeypatch.setattr(runs, 'TRAIN', (str(tmp_path / 'stub.py'),))
        monkeypatch.setattr(pfb_mmseg, '__file__', str(package / '__init__.py'))

    def commit(self, tmp_path):
        git = ['git', '-C', str(tmp_path / 'checkout'), '-c', 'user.name=a', '-c', 'user.email=b']
        for command in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'x']):
            subprocess.run([*git, *command], check=True)

    def train(self, tmp_path):
        """What was printed."""
        console = Console(width=500, file=io.StringIO())
        with Progress(console=console) as progress:
            runs.train(tmp_path / 'config.py', tmp_path / 'run', progress, 'one')
        assert runs.last_score(tmp_path / 'run') == ('mIoU', 50)
        return console.file.getvalue()

    def test_a_run_of_the_same_code_is_reused_whatever_else_was_committed(self, tmp_path):
        assert 'one: mIoU 50.00' in self.train(tmp_path)
        first = this_code()['version']
        (tmp_path / 'checkout/README.md').write_text('words')
        self.commit(tmp_path)
        assert this_code()['version'] != first
        assert f'one: reused, finished before by {first}' in self.train(tmp_path)

    def test_a_run_of_other_code_is_made_again(self, tmp_path):
        self.train(tmp_path)
        first = this_code()['version']
        (tmp_path / 'checkout/pfb_mmseg/__init__.py').write_text('a = 2')
        told = self.train(tmp_path)
        assert f'run again, the one finished before by {first} had other code' in told
        assert 'one: mIoU 50.00' in told
        assert 'one: reused' in self.train(tmp_path)

    def test_another_config_is_another_run(self, tmp_path):
        self.train(tmp_path)
        (tmp_path / 'config.py').write_text('lr = 2')
        told = self.train(tmp_path)
        assert 'had another command or config' in told and 'one: mIoU 50.00' in told


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'name --methods, --variants or both'),
        (['--methods', 'pbf'], "invalid choice: 'pbf'"),
        (['--methods', 'pfb', '--ratios', '1.5'], "--ratios: '1.5': expected a number in (0, 1)"),
        (['--methods', 'short', 'pfb'], "it takes 'full' and a method that prunes"),
        (['--methods', 'long', 'full'], "it takes 'full' and a method that prunes"),
        (['--methods', 'small', 'pfb'], "it takes 'full' beside it"),
        (
            ['--methods', 'full', 'small', '--ratios', '0.1'],
            'batches of 4 image(s), of which at least 1 must stay, cannot be smaller',
        ),
        (['--methods', 'full', '--gpus', '0'], "--gpus: '0': expected an integer >= 1"),
        (['--methods', 'full', '--iters', '0'], "--iters: '0': expected an integer >= 1"),
        (['--variants', 'a:lr'], "'lr': expected KEY=VALUE"),
        (['--variants', 'full', '--methods', 'full'], 'two rows have one name'),
        (['--variants', 'a:model.pfb.criterion=rar'], "did you mean 'rare'"),
        (
            ['--methods', 'full', '--cfg-options', 'param_scheduler.0.by_epoch=True', '--iters']
            + ['2'],
            'PolyLR counts epochs',
        ),
    ],
)
def test_a_mistake_is_told_before_anything_runs(folder, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(folder)
    monkeypatch.setattr('sys.argv', ['compare.py', 'small.py', *arguments, '--work-dir', 'none'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / 'none').exists()


def outcome(row, seed, score, seconds=9.0, **budget):
    books = dict(iterations=10, candidates=80, loaded=80, shallow=80, deep=80, backward=80)
    books |= dict(peak_memory_mib=100.0, seconds=seconds, cpu_seconds=seconds, metric='mIoU')
    books |= dict(startup_seconds=0.0, startup_cpu_seconds=0.0) | budget
    return Outcome(row, row, None, seed, score, **books)


class TestFigures:
    def test_differences_and_times_are_paired_by_seed(self):
        full, pruned = summarise(
            [
                outcome('full', 0, 50.0, 100.0),
                outcome('full', 1, 40.0, 80.0),
                outcome('pfb', 1, 41.0, 40.0, backward=40),  # another order of the seeds
                outcome('pfb', 0, 48.0, 60.0, backward=42),
            ],
            'full',
        )
        assert full.means['score'] == 45 and full.stds['score'] == pytest.approx(50**0.5)
        assert not {'difference', 'saved', 'cpu_saved'} & {*full.means}
        assert pruned.means['difference'] == pytest.approx(-0.5)
        assert pruned.stds['difference'] == pytest.approx(4.5**0.5)
        assert pruned.means['saved'] == pruned.means['cpu_saved'] == pytest.approx(0.45)
        assert (pruned.means['backward'], pruned.num_seeds) == (41, 2)
        assert pruned.cell('difference') == '-0.50 ± 2.12' and full.cell('difference') == '-'

    def test_a_single_seed_has_no_deviation(self):
        (line,) = summarise([outcome('full', 0, 50.0, 100.0)], 'full')
        assert line.stds == {}
        assert '| full | 50.00 | - | 100.0 | - | 100.0 | - |' in markdown([line])

    def test_the_table_of_classifiers_is_of_top_1(self):
        lines = summarise([outcome('full', 0, 61.5, 100.0, metric='top-1')], 'full')
        assert markdown(lines).startswith('| method | top-1 [%] | paired difference |')
        assert '| full | 61.50 |' in markdown(lines)

    @pytest.mark.parametrize(
        ('logged', 'metric', 'score'),
        [
            ({'accuracy/top1': 61.5, 'accuracy/top5': 90.0}, 'top-1', 61.5),
            ({'aAcc': 80.0, 'mIoU': 40.25, 'mAcc': 50.0}, 'mIoU', 40.25),
            ({'data_time': 0.1}, None, None),
        ],
    )
    def test_a_run_is_scored_by_the_metric_of_its_last_validation(
        self, tmp_path, logged, metric, score
    ):
        (tmp_path / 'run/vis_data').mkdir(parents=True)
        entries = [{'loss': 1.0, 'step': 1}, {'step': 2}, {**logged, 'step': 4}]
        lines = ''.join(f'{json.dumps(entry)}\n' for entry in entries)
        (tmp_path / 'run/vis_data/scalars.json').write_text(lines)
        assert runs.last_score(tmp_path) == (metric, score)

    def test_iterations_that_fit_into_a_time_count_the_start_up_once(self):
        run = outcome('pace', 0, None, 25.0, iterations=20, startup_seconds=5.0, cpu_seconds=40.0)
        assert equal_iters(outcome('full', 0, 1.0, 35.0, iterations=20), run, 'wall', 0.5) == (
            30,
            True,
        )
        assert equal_iters(outcome('full', 0, 1.0, 60.0, iterations=20), run, 'cpu', 0.5) == (
            30,
            True,
        )

    def test_a_short_run_tells_the_pace_of_a_long_one(self):
        run = outcome('pace', 0, None, 6.0, iterations=30)
        full = outcome('full', 0, 1.0, 90.0, iterations=300)
        assert equal_iters(full, run, 'wall', 0.5) == (450, True)

    @pytest.mark.parametrize(('target', 'iters'), [(1e4, 50), (3.0, 8), (-2.0, 8)])
    def test_times_of_a_busy_machine_are_bounded_by_what_pruning_can_save(self, target, iters):
        run = outcome('pace', 0, None, 20.0, iterations=20)
        full = outcome('full', 0, 1.0, target, iterations=20)
        assert equal_iters(full, run, 'wall', 0.5) == (iters, False)
