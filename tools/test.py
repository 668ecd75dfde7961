"""`pfb test` of this checkout: `python tools/test.py CONFIG CHECKPOINT`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('test')
