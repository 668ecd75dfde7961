"""What is built for others to install is complete: the package, its configs and its tools."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from pfb_mmseg.compat import find_distributions, why_no_resume

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/[!_]*/*.py'))
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
# No part of the checkout, but may lie in it.
LEFT_OUT = ('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'site', 'work_dirs')
# The way out that the tools name where MMEngine cannot read back its checkpoints.
REFUSED = why_no_resume(find_distributions(), torch.__version__)
LEAVE = {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'} if REFUSED else {}
DEMO = 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64'
SMALL = [
    'train_cfg.max_iters=6',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.length=24',
    'val_dataloader.dataset.length=4',
    'test_dataloader.dataset.length=4',
    'model.backbone.base_channels=8',
    'model.backbone.stem_channels=8',
    'model.decode_head.in_channels=64',
    'model.auxiliary_head.in_channels=32',
]


def left_out(folder, names):
    """Data sets lie in data/ of the checkout; pfb_mmseg/data is code."""
    patterns = (*LEFT_OUT, 'data') if Path(folder) == ROOT else LEFT_OUT
    return shutil.ignore_patterns(*patterns)(folder, names)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy to build in, with what a build before may have left there."""
    folder = tmp_path_factory.mktemp('checkout') / 'pfb_mmseg'
    shutil.copytree(ROOT, folder, ignore=left_out)
    old = folder / 'build/lib/pfb_mmseg'
    old.mkdir(parents=True)
    (old / 'gone.py').touch()
    return folder


def python(*arguments, folder):
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def build_wheel(folder, out):
    """`pip wheel --no-deps .`, with the setuptools at hand: no network."""
    offline = ['--no-build-isolation', '--no-index', '--quiet']
    python('-m', 'pip', 'wheel', '--no-deps', *offline, '--wheel-dir', out, '.', folder=folder)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    return build_wheel(checkout, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def sdist(checkout, tmp_path_factory):
    out = tmp_path_factory.mktemp('sdist')
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(out)!r})'
    python('-c', code, folder=checkout)
    (file,) = out.iterdir()
    return file


def files_of(folder, pattern='*'):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob(pattern)
        if path.is_file() and path.parent.name != '__pycache__'
    }


def test_a_wheel_has_the_package_and_all_that_mim_looks_for_and_no_more(wheel, checkout):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        for name in names:
            inside = name.removeprefix('pfb_mmseg/.mim/')
            assert archive.read(name) == (checkout / inside).read_bytes(), name
    package = {f'pfb_mmseg/{name}' for name in files_of(checkout / 'pfb_mmseg', '*.py')}
    package.add('pfb_mmseg/py.typed')
    assert not any('camvid' in name or 'benchmarks' in name for name in names)
    configs = {f'pfb_mmseg/.mim/configs/{name}' for name in files_of(checkout / 'configs')}
    tools = {f'pfb_mmseg/.mim/tools/{name}' for name in files_of(checkout / 'tools')}
    assert names == package | configs | tools | {'pfb_mmseg/.mim/model-index.yml'}


def test_the_checkout_holds_no_copies_of_what_the_wheel_has(wheel, checkout):
    assert not (ROOT / 'pfb_mmseg/.mim').exists() and not (checkout / 'pfb_mmseg/.mim').exists()


def test_a_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / 'source', filter='data')
    (source,) = (tmp_path / 'source').iterdir()
    assert files_of(source / 'tests', '*.py') == files_of(ROOT / 'tests', '*.py')
    again = build_wheel(source, tmp_path / 'out')
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_index_lists_every_config_as_mim_wants_it():
    assert sorted(model['Config'] for model in INDEX['Models']) == CONFIGS
    collections = {collection['Name'] for collection in INDEX['Collections']}
    for model in INDEX['Models']:
        assert model['In Collection'] in collections
        # MIM takes the name for the config's, and looks it up in lower case.
        assert model['Name'] == Path(model['Config']).stem == model['Name'].lower()
        assert 'Weights' not in model  # none are published
    for entry in [*INDEX['Collections'], *INDEX['Models']]:
        # The index reader refuses a README that is not there.
        assert (ROOT / entry.get('README', 'README.md')).is_file()


@pytest.mark.parametrize('model', INDEX['Models'], ids=lambda model: model['Name'])
def test_what_the_index_says_of_a_config_is_true(model):
    cfg = Config.fromfile(ROOT / model['Config'])
    metadata = model['Metadata']
    (gpus,) = re.findall(r'_(\d+)xb', model['Name'])
    assert metadata['Batch Size'] == int(gpus) * cfg.train_dataloader.batch_size
    loop = cfg.train_cfg
    for unit, length in (('Iterations', 'max_iters'), ('Epochs', 'max_epochs')):
        assert metadata.get(unit) == loop.get(length)
    ratio = {
        'Full data': lambda: 0,
        'PFB': lambda: cfg.model.pfb.prune_ratio,
        'InfoBatch': lambda: cfg.train_dataloader.sampler.prune_ratio,
    }
    assert metadata['Prune Ratio'] == ratio[model['In Collection']]()


@pytest.fixture(scope='module')
def outside(wheel, tmp_path_factory):
    """Runs a program of an environment that has the wheel, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp('outside')
    environment = folder / 'environment'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    bin = environment / 'bin'
    paths = {'base': str(environment), 'platbase': str(environment)}
    packages = Path(sysconfig.get_path('purelib', 'venv', vars=paths))
    # torch and the mm* packages are borrowed; a .pth file there is not read, so no checkout is.
    (packages / 'borrowed.pth').write_text(sysconfig.get_path('purelib'))
    pip = [sys.executable, '-m', 'pip', '--python', bin / 'python', '--quiet', 'install']
    subprocess.run([*pip, '--no-deps', '--no-index', wheel], check=True)

    def run(program, *arguments, status=0):
        env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        run = subprocess.run(
            [bin / program, *arguments],
            cwd=folder,
            env=env | LEAVE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert run.returncode == status, run.stdout
        return run.stdout

    run.folder = folder
    run.installed = packages / 'pfb_mmseg'
    return run


@pytest.mark.slow
def test_an_installed_wheel_is_used_and_not_the_checkout(outside):
    code = 'import pfb_mmseg; print(pfb_mmseg.__file__)'
    assert outside('python', '-c', code).splitlines()[-1] == str(outside.installed / '__init__.py')


@pytest.mark.slow
def test_the_commands_of_an_installed_wheel_work_on_what_it_brings(outside):
    assert 'export' in outside('pfb', '--help') and 'torch' in outside('pfb', '--version')
    assert 'did you mean train?' in outside('pfb', 'trian', status=2)
    outside('pfb', 'check', DEMO)
    outside('pfb', 'train', DEMO, '--work-dir', 'run', '--cfg-options', *SMALL)
    checkpoint = 'run/iter_6.pth'
    told = outside('pfb', 'test', DEMO, checkpoint, '--show-dir', 'drawn', '--cfg-options', *SMALL)
    assert 'mIoU' in told and len([*(outside.folder / 'drawn').rglob('*.png')]) == 4
    outside('pfb', 'report', 'run')
    assert (outside.folder / 'run/pruning_report/index.html').is_file()
    options = ['--out', 'ranking', '--images', '2', '--cfg-options', *SMALL]
    outside('pfb', 'browse', DEMO, checkpoint, *options)
    outside('pfb', 'benchmark', DEMO, '--steps', '3', '--ratios', '0.5')
    outside('pfb', 'export', checkpoint, 'plain')
    assert (outside.folder / 'plain/iter_6.pth').is_file()


@pytest.mark.slow
def test_mim_finds_what_it_calls(outside):
    """`mim train` and `mim test` call these files with these arguments; `mim run` the others."""
    mim = outside.installed / '.mim'
    (config,) = mim.glob(f'configs/*/{DEMO}.py')
    options = ['--launcher', 'none', '--work-dir', 'by_mim', '--cfg-options', *SMALL]
    outside('python', mim / 'tools/train.py', config, *options)
    assert (outside.folder / 'by_mim/pfb_record.npz').is_file()
    told = outside('python', mim / 'tools/test.py', config, 'by_mim/iter_6.pth', *options)
    assert 'mIoU' in told
    outside('python', mim / 'tools/pruning_report.py', 'by_mim')
