"""Shows what a run with PFB skipped: `python tools/pruning_report.py WORK_DIR`."""

import pfb_mmseg  # noqa: F401  comes first: it says what is missing or does not fit

# isort: split
from _cli import ToolParser
from pfb_mmseg.reporting.report import write_report


def main() -> None:
    parser = ToolParser(
        description='Write a page that shows which images a run with PFB skipped. The run may be '
        'finished, interrupted or still going. Call it where the training was called.'
    )
    parser.add_argument('work_dir', help='work dir of the run')
    parser.add_argument('--out', help='folder for the page (default: WORK_DIR/pruning_report)')
    parser.add_argument('--images', type=int, default=12, metavar='N', help='in each gallery')
    parser.add_argument(
        '--scan-seconds',
        type=float,
        default=20,
        metavar='S',
        help='how long to run the model over images, to find those closest to the busiest '
        'centroids; 0: not at all',
    )
    args = parser.parse_args()
    if args.images < 0 or args.scan_seconds < 0:
        parser.error('--images and --scan-seconds must not be negative')
    try:
        written = write_report(args.work_dir, args.out, args.images, args.scan_seconds, print)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f'Report: {written}')


if __name__ == '__main__':
    main()
