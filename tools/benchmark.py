"""`pfb benchmark` of this checkout: `python tools/benchmark.py CONFIG`."""

from pfb_cli import call

if __name__ == '__main__':
    call('benchmark')
