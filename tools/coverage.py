"""`pfb coverage` of this checkout: `python tools/coverage.py`."""

from pfb_cli import call

if __name__ == '__main__':
    call('coverage')
