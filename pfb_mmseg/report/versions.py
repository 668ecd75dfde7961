"""What a run, or a measurement, was made with, and what a bug report needs."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import pfb_mmseg

from ..compat import find_distributions
from ..version import __version__


def installed_versions() -> dict[str, str]:
    """Names and versions of the packages that decide what a run does, and the device."""
    found = {'Python': platform.python_version(), 'torch': torch.__version__}
    for distributions in find_distributions().values():
        found |= distributions
    found |= {'numpy': np.__version__, 'pfb_mmseg': __version__}
    found['device'] = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return {name: str(version) for name, version in found.items()}


def this_code() -> dict[str, str]:
    """What the package that trains is: its version, in a checkout with the commit ('+dirty': with
    changes since), and a digest of its Python files, which tells whether two are the same code."""
    package = Path(pfb_mmseg.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        digest.update(f'{path.relative_to(package).as_posix()}\0'.encode() + path.read_bytes())
    version = f'pfb_mmseg {__version__}'
    # An installed package may lie inside a checkout of something else.
    if (package.parent / '.git').exists() and (commit := _git(package, 'rev-parse', 'HEAD')):
        dirty = '+dirty' if _git(package, 'status', '--porcelain', '--', '.') else ''
        version += f' (commit {commit[:12]}{dirty})'
    return {'version': version, 'digest': digest.hexdigest()}


def for_a_bug_report() -> str:
    """A line for each thing that matters: the code, what it runs on, and what it runs with."""
    lines = {'platform': platform.platform(), 'CUDA': torch.version.cuda or 'not in this torch'}
    lines |= installed_versions()
    lines['pfb_mmseg'] = this_code()['version'].removeprefix('pfb_mmseg ')
    brought_by = metadata.packages_distributions()
    for module in ('mmengine', 'mmcv', 'mmseg', 'mmdet'):
        found = {name: metadata.version(name) for name in brought_by.get(module, ())}
        lines |= found or {module: 'version unknown' if find_spec(module) else 'not installed'}
    mmcv = find_spec('mmcv')
    # Without them MMDetection cannot be imported.
    compiled = mmcv and PathFinder.find_spec('mmcv._ext', mmcv.submodule_search_locations)
    lines['compiled operations of mmcv'] = 'there' if compiled else 'not there'
    return '\n'.join(f'{name}: {value}' for name, value in lines.items())


def _git(folder: Path, *arguments: str) -> str:
    """What git answers; nothing where there is no git."""
    try:
        answer = subprocess.run(
            ['git', '-C', str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return answer.stdout.strip()
