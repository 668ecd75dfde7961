"""Says what is wrong with the files a config points to: `python tools/check_dataset.py CONFIG`."""

import sys

import pfb_mmseg  # noqa: F401  comes first: it says what is missing or does not fit

# isort: split
from rich.progress import Progress

from _cli import ToolParser, add_config_options, named_config
from pfb_mmseg.reporting.dataset_check import check_config


def main() -> None:
    parser = ToolParser(
        description='Look at the data sets of a config: folders, pairs of images and labels, '
        'sizes, label values. The exit status is 1 if anything is wrong.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--read',
        type=int,
        default=200,
        metavar='N',
        help='pairs to open of each data set, evenly spread; 0: all (default: 200)',
    )
    add_config_options(parser)
    args = parser.parse_args()
    if args.read < 0:
        parser.error(f'--read {args.read}: expected 0 or more')
    config = named_config(parser, args, needs='train_dataloader')
    with Progress(transient=True) as progress:
        task = progress.add_task('Opening pairs', total=None)
        good, bad, advice = check_config(
            config, args.read or None, lambda done: progress.update(task, completed=done)
        )
    for sentence in good:
        print(f'ok       {sentence}')
    for sentence in bad:
        print(f'problem  {sentence}')
    for sentence in advice:
        print(f'remedy   {sentence}')
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main()
