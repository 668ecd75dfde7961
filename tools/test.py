"""`pfb test` of this checkout: `python tools/test.py CONFIG CHECKPOINT`."""

from pfb_cli import call

if __name__ == '__main__':
    call('test')
