"""Prints what a decision costs: `python tools/benchmark_core.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('benchmark_core')
