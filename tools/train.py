"""`pfb train` of this checkout: `python tools/train.py CONFIG`."""

from pfb_cli import call

if __name__ == '__main__':
    call('train')
