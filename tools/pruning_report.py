"""`pfb report` of this checkout: `python tools/pruning_report.py WORK_DIR`."""

from pfb_mmseg.commands.main import main

if __name__ == '__main__':
    main('report')
