"""Shows how well an exit ranks images: `python tools/agreement.py CONFIG`."""

from pfb_mmseg.commands.main import call

if __name__ == '__main__':
    call('agreement')
