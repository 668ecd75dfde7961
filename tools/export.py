"""`pfb export` of this checkout: `python tools/export.py CHECKPOINT OUT`."""

from pfb_cli import call

if __name__ == '__main__':
    call('export')
