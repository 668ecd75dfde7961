"""`pfb compare` of this checkout: `python tools/compare.py CONFIG`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('compare')
