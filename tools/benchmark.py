"""`pfb benchmark` of this checkout: `python tools/benchmark.py CONFIG`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('benchmark')
