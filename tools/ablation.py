"""Repeats the paper's ablations: `python tools/ablation.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('ablation')
