"""`pfb demo` of this checkout: `python tools/demo.py`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('demo')
