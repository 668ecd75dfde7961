"""`pfb check` of this checkout: `python tools/check_dataset.py CONFIG`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('check')
