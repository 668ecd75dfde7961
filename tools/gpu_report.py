"""Measures everything that wants a GPU: `python tools/gpu_report.py`, or `make gpu-report`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from pfb_mmseg.commands.main import call  # noqa: E402

if __name__ == '__main__':
    call('gpu_report')
