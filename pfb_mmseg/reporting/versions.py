"""What a run was made with."""

from __future__ import annotations

import platform

import numpy as np
import torch

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
