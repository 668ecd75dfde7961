"""What the pages show can be done: links lead somewhere, commands are understood, Python runs."""

import argparse
import ast
import functools
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope
from mmseg.registry import MODELS

import pfb_mmseg
from pfb_mmseg.commands.main import read

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'configs/README.md')
]
PAGES += sorted((ROOT / 'docs/guide').glob('*.md')) + sorted((ROOT / 'docs/reference').glob('*.md'))
PAGES += sorted((ROOT / 'pfb_mmseg').glob('*/README.md'))
# Reports are frozen: their commands are those of the version that they name.
REPORTS = sorted((ROOT / 'docs/reports').glob('*.md'))
TEMPLATES = sorted((ROOT / '.github/ISSUE_TEMPLATE').iterdir())

# Commands that are not checked, with the reason.
NOT_RUN = {
    'pip install -e .': 'changes the environment; setup.py is held by test_setup.py',
    'pip install -e .[mmseg]': 'changes the environment; setup.py is held by test_setup.py',
    'pip install -e .[classification]': 'changes the environment',
}
# Python of these pages is run by tests of their own.
RUN_ELSEWHERE = {
    'docs/guide/your-own-loop.md': 'test_loop_page.py',
    'docs/guide/your-own-model.md': 'test_own_model_page.py',
    'docs/guide/classification.md': 'classifiers/test_runs.py',
    'docs/guide/detection.md': 'test_detection_page.py',
    'docs/guide/several-gpus.md': 'test_pages.py',
    'docs/reference/log-scalars.md': 'test_log_entries.py',
    'pfb_mmseg/core/README.md': 'core/test_page.py',
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, language):
    return re.findall(rf'^```{language}\n(.*?)^```$', page.read_text(), flags=re.M | re.S)


def prose(page):
    """A page without its code, in which nothing is a link or a heading."""
    return re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Of a page's headings, as GitHub and MkDocs agree on them."""
    headings = re.findall(r'^#+ +(.+?) *$', prose(page), flags=re.M)
    return {re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings}


@pytest.mark.parametrize('page', [*PAGES, *REPORTS], ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if target.startswith('https://'):
            continue
        file, _, anchor = target.partition('#')
        path = (page.parent / file).resolve() if file else page
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
    """Runs the lines of a block in bash, where each known command only notes its arguments."""
    folder = tmp_path_factory.mktemp('shell')
    (folder / 'bin').mkdir()
    for name in ('bash', 'make', 'pfb', 'pip', 'python'):
        command = folder / 'bin' / name
        command.write_text(
            '#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" >> "$NOTES"\necho >> "$NOTES"\n'
        )
        command.chmod(0o755)
    bash = shutil.which('bash')

    def run(block):
        notes = folder / 'notes'
        notes.write_text('')
        subprocess.run(
            [bash, '-euc', block.replace('.venv/bin/', '')],
            env={'PATH': str(folder / 'bin'), 'NOTES': str(notes)},
            cwd=folder,
            check=True,
        )
        return [line.split('\0')[:-1] for line in notes.read_text().splitlines()]

    return run


class Parsed(Exception):
    """The arguments were understood; nothing of the tool has run."""


@pytest.fixture
def parse(monkeypatch):
    """Lets a tool read its arguments, and no more."""

    def parse_args(parser, args=None, namespace=None):
        arguments, unknown = parser.parse_known_args(args, namespace)
        if unknown:
            parser.error(f'unrecognized arguments: {" ".join(unknown)}')
        raise Parsed(arguments)

    def parse(tool, arguments):
        command = re.search(r"main\('(\w+)'\)", Path(tool).read_text()) if tool != 'pfb' else None
        if tool == 'pfb' or command:
            read([*([command[1]] if command else []), *arguments])
            return
        monkeypatch.setattr(sys, 'argv', [str(tool), *arguments])
        monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        with pytest.raises(Parsed):
            runpy.run_path(str(tool), run_name='__main__')

    return parse


def check(command, parse):
    """Raises where the command cannot work as it stands."""
    program, *arguments = command
    for argument in arguments:
        if argument.startswith(('configs/', 'tools/', 'tests/', 'pfb_mmseg/')):
            assert (ROOT / argument).exists(), argument
    if program == 'make':
        for target in [argument for argument in arguments if '=' not in argument]:
            assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), flags=re.M), target
    elif program == 'python' and arguments[0].endswith('.py'):
        parse(ROOT / arguments[0], arguments[1:])
    elif program == 'pfb':
        if arguments[0] not in ('--help', '--version'):
            parse('pfb', arguments)
    elif program == 'python' and arguments[:2] == ['-m', 'pytest']:
        assert all((ROOT / path).exists() for path in arguments[2:] if not path.startswith('-'))
    elif program == 'bash':
        script = Path(arguments[0])
        tool = script.stem.removeprefix('dist_').removeprefix('slurm_')
        # CONFIG GPUS, or PARTITION JOB_NAME CONFIG, then options of the tool
        given = [one for one in arguments[1:] if one not in ('PARTITION', 'JOB_NAME')]
        if script.stem.startswith('dist_'):
            assert given.pop(2 if tool == 'test' else 1).isdecimal()
        parse(ROOT / 'tools' / f'{tool}.py', given)
    else:
        raise AssertionError('no rule says how to check this')


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_every_command_is_understood(page, shell, parse):
    for block in blocks(page, 'bash'):
        assert block.strip()
        for command in shell(block):
            if ' '.join(command) not in NOT_RUN:
                check(command, parse)


def test_a_command_that_no_tool_knows_is_seen(shell, parse, capsys):
    block = 'LONG=1 python tools/train.py CONFIG --prune-ratoi "0.3 # x"   # said so\nmake dmeo\n'
    misspelt, no_target = shell(block)
    assert misspelt == ['python', 'tools/train.py', 'CONFIG', '--prune-ratoi', '0.3 # x']
    with pytest.raises(SystemExit):
        check(misspelt, parse)
    assert 'did you mean --prune-ratio?' in capsys.readouterr().err
    with pytest.raises(AssertionError, match='dmeo'):
        check(no_target, parse)
    with pytest.raises(subprocess.CalledProcessError):
        shell('no-such-command')


def test_what_is_not_run_is_shown_somewhere(shell):
    shown = {
        ' '.join(command)
        for page in PAGES
        for block in blocks(page, 'bash')
        for command in shell(block)
    }
    assert shown >= NOT_RUN.keys()


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_python_of_a_page_is_a_config_that_trains_or_is_run_elsewhere(page):
    if name_of(page) in RUN_ELSEWHERE:
        test = ROOT / 'tests' / RUN_ELSEWHERE[name_of(page)]
        assert page.name in test.read_text()
        return
    for block in blocks(page, 'python'):
        init_default_scope('mmseg')
        cfg = Config.fromfile(ROOT / 'configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py')
        cfg.merge_from_dict(Config.fromstring(block, '.py').to_dict())
        assert type(MODELS.build(cfg.model)) is pfb_mmseg.PFBEncoderDecoder
        assert type(HOOKS.build(cfg.custom_hooks[0])) is pfb_mmseg.PFBHook


def messages_of(package):
    """Every string in the code of a package, with `…` where a value is filled in."""
    found = []
    for path in sorted(package.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else '…' for p in node.values]
                found.append(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return '\n'.join(found)


def test_troubleshooting_explains_messages_that_the_code_has():
    page = (ROOT / 'docs/guide/troubleshooting.md').read_text()
    explained = re.findall(r'^\| "(.+?)" \|', page, flags=re.M)
    assert explained
    messages = messages_of(ROOT / 'pfb_mmseg')
    for words in explained:
        pattern = '.{0,40}'.join(re.escape(part.strip()) for part in words.split('…'))
        assert re.search(pattern, messages, flags=re.S), words


def test_the_function_of_the_page_gives_each_process_the_group_it_is_in(monkeypatch):
    page = ROOT / 'docs/guide/several-gpus.md'
    [block] = blocks(page, 'python')
    names = {}
    exec(compile(block, str(page), 'exec'), names)
    groups = []
    monkeypatch.setattr(names['dist'], 'new_group', lambda ranks: ranks)
    for rank in range(4):
        monkeypatch.setattr(names['dist'], 'get_rank', lambda rank=rank: rank)
        groups.append(names['data_parallel_group']())
    assert groups == [[0, 2], [1, 3], [0, 2], [1, 3]]


@pytest.mark.parametrize('template', TEMPLATES, ids=name_of)
def test_issue_templates_ask_for_versions_by_a_command_that_works(template):
    fields = {field.get('id'): field for field in yaml.safe_load(template.read_text())['body']}
    asked = fields['versions']['attributes']['description']
    assert '`pfb --version`' in asked
    assert f'pfb_mmseg: {pfb_mmseg.__version__}' in output_of(re.search(r'`python (.+)`', asked)[1])


@functools.cache
def output_of(command):
    run = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_what_is_said_of_versions_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == pfb_mmseg.__version__
    assert f'## {pfb_mmseg.__version__} ' in (ROOT / 'CHANGELOG.md').read_text()
    pinned = re.search(r'^ruff==(.+)$', (ROOT / 'requirements/constraints.txt').read_text(), re.M)
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    assert [repo['rev'] for repo in hooks['repos']] == [f'v{pinned[1]}']
