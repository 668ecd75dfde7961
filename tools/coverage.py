"""`pfb coverage` of this checkout: `python tools/coverage.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('coverage')
