"""`pfb check` of this checkout: `python tools/check_dataset.py CONFIG`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('check')
