"""The command `pfb`: what it says of itself, and where it works."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import pfb_mmseg
from pfb_mmseg import shipped
from pfb_mmseg.commands.main import COMMANDS, read
from pfb_mmseg.compare import runs

ROOT = Path(__file__).resolve().parents[1]
NAME = 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64'
PFB = 'import sys; from pfb_mmseg.commands.main import main; sys.argv[0] = "pfb"; main()'


def pfb(*arguments, code=PFB, folder=None, path=(), **environment):
    """A process of its own, as the installed command starts one."""
    path = os.pathsep.join(map(str, [*path, ROOT, os.environ.get('PYTHONPATH', '')]))
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *arguments],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path, **environment},
        capture_output=True,
        text=True,
    )


class TestHelp:
    def test_explains_all_commands_in_one_screen(self, capsys, monkeypatch):
        monkeypatch.setenv('COLUMNS', '80')
        for arguments in (['--help'], []):
            with pytest.raises(SystemExit):
                read(arguments)
            text = capsys.readouterr().out
            assert len(text.splitlines()) <= 35
            assert all(f'    {name} ' in f'{text} ' or name in text for name in COMMANDS)

    @pytest.mark.parametrize('name', COMMANDS)
    def test_explains_each_command(self, name, capsys, monkeypatch):
        monkeypatch.setenv('COLUMNS', '120')
        with pytest.raises(SystemExit) as stop:
            read([name, '--help'])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and f'usage: pfb {name} ' in text
        assert import_module(f'pfb_mmseg.commands.{name}').__doc__.splitlines()[0] in text

    @pytest.mark.parametrize(
        ('arguments', 'sentence'),
        [
            (['trian'], r'did you mean train?'),
            (
                ['test', 'a', 'http://b', '--show-dri', 'x'],
                'pfb test: error: unrecognized arguments',
            ),
            (['test', 'a', 'http://b', '--show-dri', 'x'], 'did you mean --show-dir?'),
            (['compare', 'a', '--methods', 'hrad'], 'did you mean hard?'),
            (['check', 'a', '--cfg-options', 'b'], "'b': expected KEY=VALUE"),
        ],
    )
    def test_tells_what_was_meant(self, arguments, sentence, capsys):
        with pytest.raises(SystemExit) as stop:
            read(arguments)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err


class TestVersion:
    def test_is_all_that_a_bug_report_needs(self):
        told = pfb('--version')
        assert told.returncode == 0, told.stderr
        lines = dict(line.split(': ', 1) for line in told.stdout.splitlines())
        assert lines['pfb_mmseg'].startswith(f'{pfb_mmseg.__version__}')
        assert {'Python', 'platform', 'torch', 'CUDA', 'device', 'numpy'} < {*lines}
        for module in ('mmengine', 'mmcv', 'mmseg', 'mmdet'):
            assert any(module in name for name in lines), module
        compiled = find_spec('mmcv._ext') is not None
        told_so = not lines['compiled operations of mmcv'].startswith('not')
        assert told_so == compiled

    def test_what_does_not_fit_is_said_before_a_command_runs(self, tmp_path):
        (tmp_path / 'mmseg').mkdir()
        (tmp_path / 'mmseg/__init__.py').write_text('assert False')
        told = pfb('train', NAME, path=[tmp_path])
        assert told.returncode == 1
        assert 'ImportError: pfb_mmseg cannot use MMSegmentation' in told.stderr

    def test_what_is_missing_is_said_before_a_command_runs(self):
        hide = "import sys; sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmseg']));"
        told = pfb('report', 'absent', code=f'{hide} {PFB}')
        assert told.returncode == 1
        assert 'ImportError: pfb_mmseg cannot use MMSegmentation: mmengine' in told.stderr
        assert pfb('--version', code=f'{hide} {PFB}').returncode == 0


class TestConfigs:
    def test_go_by_their_names_and_by_their_paths(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        expected = ROOT / f'configs/demo/{NAME}.py'
        assert shipped.find_config(NAME) == shipped.find_config(f'{NAME}.py') == expected
        (tmp_path / f'{NAME}.py').write_text('mine = True')
        assert shipped.find_config(f'{NAME}.py') == Path(f'{NAME}.py')

    def test_a_near_miss_is_told(self):
        with pytest.raises(ValueError, match=rf"config '{NAME[:-1]}5'.*did you mean {NAME}\?"):
            shipped.find_config(f'{NAME[:-1]}5')

    def test_parts_that_others_inherit_are_none(self):
        assert 'default_runtime' not in shipped.list_configs()
        assert NAME in shipped.list_configs()

    def test_of_an_installed_package_lie_inside_of_it(self, tmp_path):
        """As MIM lays them out."""
        package = tmp_path / 'pfb_mmseg'
        configs = package / '.mim/configs/demo'
        configs.mkdir(parents=True)
        (configs / 'a.py').touch()
        (package / '__init__.py').touch()
        (package / 'shipped.py').write_text((ROOT / 'pfb_mmseg/shipped.py').read_text())
        code = "from pfb_mmseg.shipped import find_config; print(find_config('a'))"
        command = [sys.executable, '-c', code]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.stdout.strip() == str(configs / 'a.py'), run.stderr


def test_a_command_works_outside_of_the_repository(tmp_path):
    told = pfb('check', NAME, folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert 'all in order' in told.stdout


def test_a_training_imports_the_package_that_started_it(tmp_path, monkeypatch):
    other = tmp_path / 'pfb_mmseg'
    other.mkdir()
    (other / '__init__.py').write_text('raise RuntimeError("another version")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    told = subprocess.run(
        [sys.executable, *runs.TRAIN, '--help'],
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert 'usage: pfb train' in told.stdout
