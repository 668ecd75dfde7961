"""`pfb report` of this checkout: `python tools/pruning_report.py WORK_DIR`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('report')
