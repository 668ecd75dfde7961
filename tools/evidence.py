"""Measures what each option of the density estimate does: `python tools/evidence.py`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('evidence')
