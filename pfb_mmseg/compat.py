"""Which OpenMMLab packages are installed, and whether pfb_mmseg can work with them.

Two families of distributions bring the import names mmengine, mmcv and mmseg: OpenMMLab's own,
and the maintained fork, whose names begin with 'onedl-'. Either will do; one over the other not.
"""

import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec

DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
MINIMUM = {'mmengine': '0.10', 'mmcv': '2.0', 'mmseg': '1.2'}

# module -> {distribution that brings it: its version}; a source checkout has none
Found = Mapping[str, Mapping[str, str]]


class OpenMMLabMissingWarning(UserWarning):
    """MMSegmentation or what it needs is not installed: only `core` and `blocking` can be used."""


def find_distributions() -> dict[str, dict[str, str]]:
    """The distributions of mmengine, mmcv and mmseg with their versions, read without importing."""
    found: dict[str, dict[str, str]] = {module: {} for module in DISTRIBUTIONS}
    for module, names in DISTRIBUTIONS.items():
        for name in names:
            with suppress(metadata.PackageNotFoundError):
                found[module][name] = metadata.version(name)
    return found


def find_conflict(found: Found) -> str | None:
    """Why the installed versions cannot work, as far as their metadata tell; None if they can."""
    for module, distributions in found.items():
        if len(distributions) > 1:
            return f'{" and ".join(distributions)} are installed over each other as {module}'
        for distribution, version in distributions.items():
            if _release(version) < _release(MINIMUM[module]):
                return f'{distribution} {version} is too old'
    return None


def describe(reason: str, found: Found) -> str:
    """One message: why it does not work, what was found, what is needed, and how to get it."""
    present = [f'{name} {version}' for pairs in found.values() for name, version in pairs.items()]
    needed = ', '.join(f'{module} >= {version}' for module, version in MINIMUM.items())
    uninstall = _uninstall(found)
    return (
        f'pfb_mmseg cannot use MMSegmentation: {reason}. '
        f'Found: {", ".join([*present, "torch " + metadata.version("torch")])}. '
        f'Needed: {needed}, which work together; the fork (onedl-) needs torch >= 2.3. '
        f'To get them: {uninstall}pip install "pfb_mmseg[mmseg]" '
        f'(from a clone of the repository: {uninstall}pip install -e ".[mmseg]").'
    )


def check_openmmlab() -> str | None:
    """Make sure that MMSegmentation can be used.

    Returns:
        None if it can. If mmengine, mmcv or mmseg is not installed: the message that was given as
        an :class:`OpenMMLabMissingWarning`, if MMEngine is there.

    Raises:
        ImportError: all are installed but cannot work, alone or together.
    """
    found = find_distributions()
    missing = [module for module in DISTRIBUTIONS if find_spec(module) is None]
    if missing:
        reason = f'{", ".join(missing)} not installed (pfb_mmseg.core and .blocking work without)'
        message = describe(reason, found)
        if 'mmengine' not in missing:  # without it nobody can ask for what needs MMSegmentation
            warnings.warn(message, OpenMMLabMissingWarning, stacklevel=3)
        return message
    conflict = find_conflict(found)
    if conflict:
        raise ImportError(describe(conflict, found))
    try:
        import_module('mmseg.models')
    except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
        raise ImportError(describe(f'importing mmseg.models fails ({error})', found)) from error
    return None


def why_no_resume(found: Found, torch_version: str) -> str | None:
    """Why MMEngine cannot read the checkpoints that it writes, and the ways out; None if it can.

    From torch 2.6 on, ``torch.load`` refuses everything but plain data unless it is told otherwise.
    OpenMMLab's MMEngine, up to 0.10.7, does not tell it, and keeps objects in a checkpoint.
    """
    engines = {n: v for n, v in found['mmengine'].items() if not n.startswith('onedl-')}
    old = [f'{n} {v}' for n, v in engines.items() if _release(v, 3) <= (0, 10, 7)]
    allowed = os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD') in ('1', 'y', 'yes', 'true')
    if not old or _release(torch_version) < (2, 6) or allowed:
        return None
    return (
        f'{old[0]} can neither resume from its own checkpoints nor test them with torch '
        f'{torch_version}, whose torch.load refuses them ("Weights only load failed"). Either '
        f'install what can: pip install "torch<2.6", or {_uninstall(found)}'
        'pip install "pfb_mmseg[mmseg]"; or, for checkpoints that you trust, set the environment '
        'variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.'
    )


def _uninstall(found: Found) -> str:
    """Takes OpenMMLab's own packages away first: the fork laid over them would break both."""
    names = [name for pairs in found.values() for name in pairs]
    foreign = any(not name.startswith('onedl-') for name in names)
    return f'pip uninstall -y {" ".join(names)} && ' if foreign else ''


def _release(version: str, parts: int = 2) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:parts])
