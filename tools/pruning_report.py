"""`pfb report` of this checkout: `python tools/pruning_report.py WORK_DIR`."""

from pfb_cli import call

if __name__ == '__main__':
    call('report')
