"""Ranks a data set by how common its images look: `python tools/browse_selection.py CONFIG CKPT`.

Nothing is trained. Useful for choosing what to label, or what to leave out.
"""

import pickle
from pathlib import Path

import pfb_mmseg  # noqa: F401  comes first: it says what is missing or does not fit

# isort: split
from mmengine.device import get_device
from rich.progress import Progress

from _cli import ToolParser, add_config_options, named_config
from pfb_mmseg.reporting.browse import write_ranking
from pfb_mmseg.reporting.images import ImageSet
from pfb_mmseg.reporting.scan import Scanner


def main() -> None:
    parser = ToolParser(
        description='Rank the images of a data set by their log density under a trained model, '
        'rarest first. Writes ranking.csv and a page with the two ends of it.'
    )
    parser.add_argument('config', help='config file, with or without PFB')
    parser.add_argument('checkpoint', help='checkpoint file, trained with or without PFB')
    parser.add_argument('--part', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--out', default='work_dirs/browse_selection', help='folder to write to')
    parser.add_argument('--images', type=int, default=24, metavar='N', help='in each gallery')
    parser.add_argument('--batch-size', type=int, default=8, metavar='N')
    parser.add_argument('--device', help='default: a GPU if there is one')
    parser.add_argument(
        '--refit',
        action='store_true',
        help="learn the density from this data set's images, even if the checkpoint has one",
    )
    add_config_options(parser)
    args = parser.parse_args()
    if args.images < 0 or args.batch_size < 1:
        parser.error('--images must not be negative, --batch-size at least 1')
    if not Path(args.checkpoint).is_file():
        parser.error(f'checkpoint {args.checkpoint!r} is not a file')
    config = named_config(parser, args)
    try:
        images = ImageSet(config, args.part)
        scanner = Scanner(config, args.checkpoint, args.device or get_device())
    except (OSError, AssertionError, ValueError, pickle.UnpicklingError) as error:
        parser.error(str(error))
    if not images.infos:
        parser.error(f'the {args.part} data set is empty; python tools/check_dataset.py tells why')

    with Progress() as progress:
        task = progress.add_task('Images', total=len(images.infos))
        x = scanner.represent(
            list(images.infos.values()),
            args.batch_size,
            progress=lambda done: progress.update(task, completed=done),
        )
    if args.refit or not scanner.has_estimate:
        why = (
            ''
            if args.refit
            else (
                ': the checkpoint has no estimate of this shape; it was trained without PFB or '
                'with another num_centroids or dim'
            )
        )
        print(f'The density is learnt from these images{why}.')
        try:
            scanner.fit(x)
        except ValueError as error:
            parser.error(str(error))
    written = write_ranking(images, scanner.log_density(x), args.out, args.images)
    print(f'Ranking: {written[0]}\nGallery: {written[1]}')


if __name__ == '__main__':
    main()
