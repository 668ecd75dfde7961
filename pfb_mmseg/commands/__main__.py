"""`python -m pfb_mmseg.commands` is `pfb`."""

from .main import main

if __name__ == '__main__':
    main()
