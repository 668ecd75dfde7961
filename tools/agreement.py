"""Shows how well an exit ranks images: `python tools/agreement.py CONFIG`."""

from pfb_cli import call

if __name__ == '__main__':
    call('agreement')
