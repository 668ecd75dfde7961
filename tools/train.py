"""`pfb train` of this checkout: `python tools/train.py CONFIG`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('train')
