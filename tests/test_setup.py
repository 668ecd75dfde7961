"""Installing and importing: what is required, and what is said where something is missing."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pfb_mmseg.compat import describe, find_conflict, why_no_resume

ROOT = Path(__file__).resolve().parents[1]
OPENMMLAB = {
    'mmengine': {'mmengine': '0.10.7'},
    'mmcv': {'mmcv': '2.1.0'},
    'mmseg': {'mmsegmentation': '1.2.2'},
}
FORK = {
    'mmengine': {'onedl-mmengine': '0.10.12'},
    'mmcv': {'onedl-mmcv': '2.3.6'},
    'mmseg': {'onedl-mmsegmentation': '1.4.2'},
}


def python(code, *, status=0, folder=None):
    """What a fresh interpreter prints, with modules of this folder found first."""
    path = os.pathsep.join(str(part) for part in (folder, ROOT) if part)
    run = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == status, run.stdout
    return run.stdout


class TestVersions:
    @pytest.mark.parametrize('found', [OPENMMLAB, FORK])
    def test_both_families_are_accepted(self, found):
        assert find_conflict(found) is None

    def test_a_source_checkout_without_metadata_is_accepted(self):
        assert find_conflict({**OPENMMLAB, 'mmseg': {}}) is None

    @pytest.mark.parametrize(
        ('module', 'found', 'reason'),
        [
            ('mmengine', {'mmengine': '0.9.1'}, 'mmengine 0.9.1 is too old'),
            ('mmcv', {'mmcv-full': '1.7.2'}, 'mmcv-full 1.7.2 is too old'),
            ('mmseg', {'mmsegmentation': '1.1.0'}, 'mmsegmentation 1.1.0 is too old'),
            (
                'mmcv',
                {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'},
                'mmcv and onedl-mmcv are installed over each other as mmcv',
            ),
        ],
    )
    def test_versions_that_cannot_work_are_named(self, module, found, reason):
        assert find_conflict({**OPENMMLAB, module: found}) == reason

    def test_the_message_gives_what_was_found_what_is_needed_and_the_command(self):
        message = describe('mmseg is broken', FORK)
        assert 'mmseg is broken' in message
        assert 'onedl-mmengine 0.10.12, onedl-mmcv 2.3.6, onedl-mmsegmentation 1.4.2' in message
        assert 'mmengine >= 0.10, mmcv >= 2.0, mmseg >= 1.2' in message
        assert 'pip install -e ".[mmseg]"' in message

    def test_the_command_never_lays_the_fork_over_openmmlabs_packages(self):
        command = 'pip uninstall -y mmengine mmcv mmsegmentation && pip install "pfb_mmseg[mmseg]"'
        assert command in describe('broken', OPENMMLAB)
        assert 'uninstall' not in describe('broken', FORK)


class TestResume:
    @pytest.fixture(autouse=True)
    def plain_environment(self, monkeypatch):
        monkeypatch.delenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', raising=False)

    @pytest.mark.parametrize('version', ['2.6.0', '2.13.0+cpu'])
    def test_openmmlabs_mmengine_on_new_torch_is_told_the_reason_and_the_ways_out(self, version):
        reason = why_no_resume(OPENMMLAB, version)
        assert 'mmengine 0.10.7 can neither resume from its own checkpoints nor test' in reason
        assert f'torch {version}' in reason and 'Weights only load failed' in reason
        for way_out in (
            'pip install "torch<2.6"',
            'pip uninstall -y mmengine mmcv mmsegmentation && pip install "pfb_mmseg[mmseg]"',
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1',
        ):
            assert way_out in reason

    def test_what_can_resume_is_left_alone(self, monkeypatch):
        assert why_no_resume(OPENMMLAB, '2.5.1') is None
        assert why_no_resume(FORK, '2.13.0') is None
        assert why_no_resume({**OPENMMLAB, 'mmengine': {'mmengine': '0.10.8'}}, '2.13.0') is None
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
        assert why_no_resume(OPENMMLAB, '2.13.0') is None


class TestImport:
    HIDE = "import sys; sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmseg']));"

    def test_core_and_blocking_need_torch_alone(self):
        output = python(
            f'{self.HIDE} sys.modules["torchvision"] = None;'
            'import pfb_mmseg, pfb_mmseg.blocking; from pfb_mmseg.core import BatchPruner;'
            'print(BatchPruner(0.5, criterion="random").num_keep(4))'
        )
        assert output.splitlines()[-1] == '2'
        assert 'Warning' not in output

    def test_what_needs_openmmlab_says_what_is_missing_when_it_is_asked_for(self):
        output = python(f'{self.HIDE} from pfb_mmseg import PFBHook', status=1)
        message = re.search('ImportError: (.+)', output)[1]
        assert 'mmengine, mmcv, mmseg not installed' in message

    def test_a_stack_that_refuses_itself_is_an_error_with_a_message(self, tmp_path):
        (tmp_path / 'mmseg').mkdir()
        refusal = 'MMCV==2.2.0 is used but incompatible'
        (tmp_path / 'mmseg' / '__init__.py').write_text(f'assert False, {refusal!r}')
        output = python('import pfb_mmseg', status=1, folder=tmp_path)
        assert 'ImportError: pfb_mmseg cannot use MMSegmentation: importing mmseg' in output
        assert refusal in output and 'pip install' in output

    def test_importing_registers_what_a_config_can_name_and_nothing_of_the_laboratory(self):
        output = python(
            'import pfb_mmseg, sys; from mmseg.registry import DATASETS, MODELS;'
            'from mmengine.registry import HOOKS;'
            'found = {*DATASETS.module_dict, *MODELS.module_dict, *HOOKS.module_dict};'
            'wanted = {"PFBEncoderDecoder", "PFBHook", "PFBDemoDataset"};'
            'print(wanted - found, [name for name in found if name.startswith("Lab")],'
            '"benchmarks" in sys.modules)'
        )
        assert output.splitlines()[-1] == 'set() [] False'

    def test_an_unknown_name_is_an_attribute_error(self):
        import pfb_mmseg

        assert not hasattr(pfb_mmseg, 'no_such_name')


def test_installing_requires_torch_and_numpy_only():
    try:
        requirements = metadata.requires('pfb_mmseg')
    except metadata.PackageNotFoundError:
        pytest.skip('pfb_mmseg is not installed')
    plain = [requirement for requirement in requirements if 'extra ==' not in requirement]
    assert sorted(re.match(r'\w+', requirement)[0] for requirement in plain) == ['numpy', 'torch']
    assert not any('==' in requirement for requirement in plain)
