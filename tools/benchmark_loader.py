"""Measures what is saved where steps wait for the loader: `python tools/benchmark_loader.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('benchmark_loader')
