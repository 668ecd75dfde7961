"""`pfb export` of this checkout: `python tools/export.py CHECKPOINT OUT`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('export')
