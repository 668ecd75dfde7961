"""`pfb test` of this checkout: `python tools/test.py CONFIG CHECKPOINT`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('test')
