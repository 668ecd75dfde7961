"""`pfb compare` of this checkout: `python tools/compare.py CONFIG`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('compare')
