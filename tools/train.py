"""`pfb train` of this checkout: `python tools/train.py CONFIG`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('train')
