"""`pfb demo` of this checkout: `python tools/demo.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('demo')
