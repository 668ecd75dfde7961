"""tools/gpu_report.py at toy size on the CPU, its tools in this process; and its arithmetic."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from pfb_mmseg.measure import compare, decision, gpu_page, gpu_report, jobs

from benchmarks.jobs import Done, Job, Jobs
from pfb_mmseg.commands.main import call

ROOT = Path(__file__).resolve().parents[1]
TOY = gpu_report.Setting('toy', 'cpu')
GPU = gpu_report.Setting('full', 'cuda', num_gpus=2)
MADE_BY = {'device': 'a GPU'}


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Runs a tool here, where everything is imported already; returns the calls that were made."""
    monkeypatch.chdir(ROOT)
    calls = []

    def execute(arguments, log, timeout):
        calls.append(arguments)
        if arguments[:2] == ['-m', 'pytest']:
            log.write_text('7 skipped in 0.01s\n')
            return 0
        if arguments[:2] == ['-m', 'torch.distributed.run']:  # one process needs no group
            start = arguments.index('tools/train.py')
            launcher = arguments.index('--launcher')
            arguments = arguments[start:launcher] + arguments[launcher + 2 :]
            # MMEngine keeps one visualizer of a name, with the folder of the first.
            arguments += ['--cfg-options', f'visualizer.name=toy-{log.parent.name}']
        command = Path(arguments[0]).stem
        monkeypatch.setattr(sys, 'argv', [*arguments])
        threads = torch.get_num_threads()
        output, status = io.StringIO(), 0  # MMEngine's loggers hold on to it
        with redirect_stdout(output):
            try:
                call(command)
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                torch.set_num_threads(threads)
        log.write_text(output.getvalue())
        return status

    monkeypatch.setattr(jobs, 'run_process', execute)
    # What it makes is tested in test_training_features.py; here it would take most of the time.
    monkeypatch.setattr(torch, 'compile', lambda function, backend: function)
    monkeypatch.setenv('LOCAL_RANK', '0')
    # It counts a hundred decisions, which takes the profiler seconds.
    monkeypatch.setattr(decision.print_launches, '__defaults__', (2,))
    return calls


@pytest.fixture
def tool(monkeypatch, tmp_path, one_thread):
    """Runs the tool itself; returns its report and its JSON."""

    def run(*arguments):
        command = ['gpu_report.py', *map(str, arguments), '--work-dir', str(tmp_path / 'out')]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', command)
            patch.setenv('CUDA_VISIBLE_DEVICES', '')
            call('gpu_report')
        page = (tmp_path / 'out/gpu_report.md').read_text()
        return page, json.loads((tmp_path / 'out/gpu_report.json').read_text())

    return run


class TestToy:
    def test_every_part_but_camvid_is_measured_and_told(self, in_process, tool, capsys):
        page, found = tool('--toy')
        assert capsys.readouterr().out.startswith('Missing: CamVid: name its folder with --camvid')
        assert page.splitlines()[2].startswith('- Missing: CamVid')
        status = {
            (part, one['name']): one['status']
            for part in found['parts']
            for one in found['parts'][part]
        }
        assert set(status.values()) == {'done'}, status
        assert {part for part, _ in status} == set(gpu_report.PARTS) - {'camvid'}
        assert len(status) == 1 + 2 + 4 + 1 + 2 + 1 + 5
        for part, name in status:
            assert f'## {part}: ' in page and f'**{name}**' in page
        assert page.count('| single_pass p=0.7 |') == 6
        assert '| pfb/kept | ' in page and '7 skipped' in page
        assert 'Side by side' in page
        for library in ('torch', 'numpy', 'device', 'command', 'code'):
            assert f'| {library} | ' in page and found['about'][library]
        assert [aim['met'] for aim in found['aims']][3:] == [None] * 3  # they want a GPU

        measured = len(in_process)
        again, _ = tool('--toy', '--parts', 'core')
        assert len(in_process) == measured
        assert '## recipes: ' in again  # what was measured before stays in the report

    @pytest.mark.slow
    def test_in_processes_of_their_own(self, tmp_path):
        tool, parts = ROOT / 'tools/gpu_report.py', ['tests', 'ranks', 'compile']
        command = [sys.executable, tool, '--toy', '--work-dir', tmp_path, '--parts', *parts]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / 'gpu_report.json').read_text())['parts']
        assert 'skipped' in found['tests'][0]['found']['summary']
        assert [one['found']['pfb/kept'] for one in found['ranks']] == [4, 4]
        [compiled] = found['compile']
        assert 'torch.compile (eager)' in compiled['found']['setting']['precision']


class TestWhatIsMissing:
    def test_without_a_gpu_the_rest_goes_on(self):
        cpu = gpu_report.Setting('moderate', 'cpu')
        absent = gpu_report.missing(cpu, list(gpu_report.PARTS))
        [(reason, parts)] = [item for item in absent.items() if 'NVIDIA' in item[0]]
        assert 'torch.cuda.is_available()' in reason
        assert parts == ['tests', 'steps', 'models', 'compile', 'camvid']
        kept = set(gpu_report.PARTS) - {name for names in absent.values() for name in names}
        assert {'core', 'ranks', 'recipes'} == kept

    def test_without_mmseg_the_core_is_left(self, monkeypatch):
        there = gpu_report.find_spec
        monkeypatch.setattr(
            gpu_report, 'find_spec', lambda name: None if name == 'mmseg' else there(name)
        )
        absent = gpu_report.missing(GPU, list(gpu_report.PARTS))
        assert any(reason.startswith('mmseg: pip install') for reason in absent)
        left = set(gpu_report.PARTS) - {name for names in absent.values() for name in names}
        assert left == {'core'}

    def test_a_folder_that_is_not_camvid_is_named(self, tmp_path):
        setting = gpu_report.Setting('full', 'cuda', camvid=tmp_path)
        [reason] = gpu_report.missing(setting, ['camvid'])
        assert str(tmp_path) in reason and 'trainannot' in reason

    def test_what_is_not_asked_for_is_not_missed(self):
        assert gpu_report.missing(gpu_report.Setting('moderate', 'cpu'), ['core']) == {}


class TestJobs:
    def job(self, *arguments, **options):
        return Job('part', 'one', ('tool.py', *arguments), **options)

    def start(self, folder, calls, status=0, made_by=MADE_BY, minutes=10.0):
        def execute(arguments, log, timeout):
            calls.append(arguments)
            log.write_text('what it says\n')
            if status == 0:
                Path(arguments[arguments.index('--out') + 1]).write_text('{"a": 1}')
            return status

        return Jobs(folder, made_by, minutes, execute, say=lambda sentence: None)

    def test_what_is_done_is_not_done_again(self, tmp_path):
        calls = []
        for _ in range(2):
            done = self.start(tmp_path, calls).run(self.job(), 10)
            assert done.found == {'a': 1} and done.command == 'python tool.py'
        assert len(calls) == 1

    def test_another_command_or_machine_is_measured_anew(self, tmp_path):
        calls = []
        self.start(tmp_path, calls).run(self.job(), 10)
        self.start(tmp_path, calls).run(self.job('--other'), 10)
        moved = self.start(tmp_path, calls, made_by={'device': 'another GPU'})
        assert moved.all == []
        moved.run(self.job('--other'), 10)
        assert len(calls) == 3

    def test_the_time_that_there_is_does_not_make_it_another_command(self, tmp_path):
        calls = []
        self.start(tmp_path, calls).run(self.job(timed=True), 60)
        assert calls[0][-2:] == ['--seconds', '30']
        self.start(tmp_path, calls).run(self.job(timed=True), 10)
        assert len(calls) == 1

    def test_a_failure_is_told_and_tried_again(self, tmp_path):
        calls = []
        done = self.start(tmp_path, calls, status=1).run(self.job(), 10)
        assert not done.done and 'what it says' in done.status and str(tmp_path) in done.status
        assert self.start(tmp_path, calls).run(self.job(), 10).done

    def test_nothing_is_begun_when_the_time_is_over(self, tmp_path):
        calls = []
        late = self.start(tmp_path, calls, minutes=0)
        assert 'no time' in late.run(self.job(), 10).status
        assert calls == [] and not late.all[0].done

    def test_a_command_that_hangs_is_ended_with_what_it_started(self, tmp_path):
        code = "import subprocess; subprocess.run(['sleep', '60'])"
        assert jobs.run_process(['-c', code], tmp_path / 'log', 0.5) == 124
        assert 'ended after' in (tmp_path / 'log').read_text()

    def test_a_command_finds_the_package_wherever_it_is_called(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv('PYTHONPATH', raising=False)
        code = "from importlib.util import find_spec; print(find_spec('pfb_mmseg').origin)"
        assert jobs.run_process(['-c', code], tmp_path / 'log', 60) == 0
        assert str(ROOT) in (tmp_path / 'log').read_text()


class TestCommands:
    """Of what only a GPU runs."""

    def collect(self, part, tmp_path, setting=GPU):
        calls = []

        def execute(arguments, log, timeout):
            calls.append(arguments)
            log.write_text('no GPU')
            return 1

        started = Jobs(tmp_path, MADE_BY, 20, execute, say=lambda sentence: None)
        gpu_report.PARTS[part].measure(setting, started, 60)
        return calls

    def test_steps_have_the_readmes_size_and_both_criteria(self, tmp_path):
        rare, hard = self.collect('steps', tmp_path)
        for command in (rare, hard):
            line = ' '.join(command)
            assert '--batch-size 8 --crop 512 1024' in line and '--device cuda' in line
            assert '--amp --channels-last' in line and '--score-scale 1 0.5' in line
            assert '--no-memory' not in line and (ROOT / command[1]).is_file()
        assert 'model.pfb.criterion.type=hard' in hard and '--cfg-options' not in rare

    def test_ranks_are_as_many_as_gpus_and_normalise_together(self, tmp_path):
        command, _ = self.collect('ranks', tmp_path)
        assert command[command.index('--nproc_per_node') + 1] == '2'
        config = Config.fromfile(tmp_path / 'ranks/rank/config.py')
        assert config.model.backbone.norm_cfg.type == 'SyncBN'
        assert config.optim_wrapper.type == 'AmpOptimWrapper'

    def test_camvid_begins_with_a_pilot_on_the_folder_that_is_named(self, tmp_path):
        setting = gpu_report.Setting('full', 'cuda', camvid=tmp_path)
        [command] = self.collect('camvid', tmp_path, setting)
        assert f'train_dataloader.dataset.data_root={tmp_path}' in command
        assert (ROOT / command[1]).is_file()

    def test_camvid_takes_one_seed_after_the_other_and_keeps_its_length(self, tmp_path):
        calls = []

        def execute(arguments, log, timeout):
            calls.append(arguments)
            folder = Path(arguments[arguments.index('--work-dir') + 1]) / 'config'
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'table.md').write_text('| a table |')
            (folder / 'comparison.json').write_text(json.dumps({'runs': [{'seconds': 2.0}]}))
            return 0

        setting = gpu_report.Setting('full', 'cuda', camvid=tmp_path)
        lengths = []
        for minutes in (20, 200):  # what a second call has does not change the runs of the first
            started = Jobs(tmp_path / 'out', MADE_BY, minutes, execute, say=lambda sentence: None)
            calls.clear()
            gpu_report.PARTS['camvid'].measure(setting, started, 60 * minutes)
            lengths.append({call[call.index('--iters') + 1] for call in calls if 'hard' in call})
        seeds = [len(call[call.index('--seeds') + 1 : call.index('--work-dir')]) for call in calls]
        assert seeds == list(range(1, 11))
        assert len(lengths[0]) == 1 and lengths[0] == lengths[1]
        page = gpu_page.markdown(setting, {}, {}, gpu_report.by_part(started.all))
        assert '| a table |' in page

    def test_compare_takes_what_camvid_asks_for(self, tmp_path, monkeypatch):
        monkeypatch.chdir(ROOT)
        planned = []
        monkeypatch.setattr(compare, 'run_all', lambda rows, *args: planned.extend(rows))
        monkeypatch.setattr(compare, 'report', lambda *args: None)
        setting = gpu_report.Setting('full', 'cuda', camvid=tmp_path)
        started = Jobs(tmp_path, MADE_BY, 20)
        methods = gpu_report.CAMVID_METHODS
        job = gpu_report._compare(setting, started, 'methods', methods, 100, [0, 1])
        monkeypatch.setattr(sys, 'argv', [*job.arguments])
        call('compare')
        assert len(planned) == gpu_report._CAMVID_RUNS
        assert {row.method for row in planned} == {*methods, 'long-hard'} - {'long'}
        for row in planned:
            assert row.config.model.pretrained is None
            assert row.config.train_dataloader.dataset.data_root == str(tmp_path)
            assert row.config.model.data_preprocessor.size == (360, 480)


class TestTime:
    def test_iterations_fill_the_time_and_leave_room_for_the_starts(self):
        runs, length = gpu_report._CAMVID_RUNS, gpu_report._CAMVID_LENGTH
        seconds = runs * 10 + length * 0.1 * 500
        assert gpu_report.camvid_iters(seconds + 1e-6, iteration=0.1, start=10) == 500

    @pytest.mark.parametrize('seconds, iters', [(0, 60), (1e9, 2000)])
    def test_iterations_stay_within_what_tells_something(self, seconds, iters):
        assert gpu_report.camvid_iters(seconds, iteration=0.1, start=10) == iters


def report(of_ideal=0.98, share=0.001, syncs=5, memory=0.5, saved=0.45, full=1.0):
    """What benchmark.py writes."""
    setting = dict(batch='8 images', precision='mixed', steps='20', notes='none')
    rows = [
        dict(name='full', of_ideal=None, kept_share=1, peak_memory=2**30, syncs=5, saved=0.0),
        dict(name='two_pass p=0.5', of_ideal=of_ideal, kept_share=0.5, saved=saved, syncs=syncs)
        | dict(peak_memory=memory * 2**30),
    ]
    for row in rows:
        row |= dict(ideal=0.5, step=dict(median=full * (1 - row['saved'])))
    return dict(setting=setting, results=rows, shallow_share=0.05, estimator_share=share)


def parts(**of_part):
    """{part: {job: found}} -> {part: [Done]}"""
    return {
        part: [
            Done(part, name, 'done', 'python x', 1.0, found, MADE_BY, 0.0)
            for name, found in of_part.get(part, {}).items()
        ]
        for part in gpu_report.PARTS
    }


class TestAims:
    def met(self, **of_part):
        return [aim.met for aim in gpu_page.aims(parts(**of_part))]

    def core(self, launches):
        return {'a decision': dict(size='N=16', costs={'cuda': {}}, launches={'cuda': launches})}

    def test_nothing_measured_is_neither_met_nor_missed(self):
        assert self.met() == [None] * 6

    def test_all_are_met(self):
        steps = {'rare': report(), 'hard': report(share=0.015)}
        assert self.met(steps=steps, core=self.core(45)) == [True] * 6

    @pytest.mark.parametrize(
        'place, worse',
        [
            (0, {'rare': report(of_ideal=0.96), 'hard': report()}),
            (1, {'rare': report(share=0.0021), 'hard': report()}),
            (2, {'rare': report(), 'hard': report(share=0.017)}),
            (3, {'rare': report(), 'hard': report(syncs=6)}),
            (4, {'rare': report(memory=0.56), 'hard': report()}),
        ],
    )
    def test_the_worst_of_all_decides(self, place, worse):
        met = self.met(steps=worse, core=self.core(45))
        assert met == [index != place for index in range(6)]

    def test_too_many_kernels_are_told(self):
        aim = gpu_page.aims(parts(core=self.core(60)))[-1]
        assert aim.met is False and aim.found == '60.0'

    def test_what_falls_short_is_marked_where_it_stands(self):
        short = report(of_ideal=0.9, syncs=7, memory=0.6)
        page = gpu_page.markdown(GPU, {}, {}, parts(steps={'rare': short}))
        [row] = [line for line in page.splitlines() if line.startswith('| two_pass')]
        cells = [cell.strip() for cell in row.strip('|').split('|')]
        assert [cell.endswith('**short**') for cell in cells] == [False] * 5 + [
            *(True, False, True, True)
        ]

    def test_recipes_are_set_beside_the_first(self):
        found = {'bf16': report(saved=0.36, full=0.5), 'float32': report(saved=0.45)}
        page = gpu_page.markdown(GPU, {}, {}, parts(recipes=found))
        [row] = [line for line in page.splitlines() if line.startswith('| bf16')]
        cells = [cell.strip() for cell in row.strip('|').split('|')]
        assert cells[2:4] == ['500.0', '2.00'] and cells[-1] == '80%'
