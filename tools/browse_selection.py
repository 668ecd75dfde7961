"""`pfb browse` of this checkout: `python tools/browse_selection.py CONFIG CHECKPOINT`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('browse')
