"""Ranks a data set by a criterion's score: `python tools/browse_selection.py CONFIG CKPT`.

Nothing is trained. By how common the images look, for choosing what to label or what to leave out;
by how hard they are, for finding labels that are wrong.
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
        description='Rank the images of a data set by their score under a trained model, the '
        'rarest or the hardest first. Writes ranking.csv and a page with the two ends of it.'
    )
    parser.add_argument('config', help='config file, with or without PFB')
    parser.add_argument('checkpoint', help='checkpoint file, trained with or without PFB')
    parser.add_argument(
        '--criterion',
        metavar='NAME',
        help="what scores: 'rare' (log density), 'hard' (loss at the exit behind the blocking "
        "point), 'loss_topk' (loss of the whole model) or one of your own; default: the config's, "
        "'rare' if that has none",
    )
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
        device = args.device or get_device()
        scanner = Scanner(config, args.checkpoint, device, args.criterion)
    except (OSError, AssertionError, TypeError, ValueError, pickle.UnpicklingError) as error:
        parser.error(str(error))
    if not images.infos:
        parser.error(f'the {args.part} data set is empty; python tools/check_dataset.py tells why')

    if args.refit and scanner.estimator is None:
        parser.error('--refit learns a density: it goes with --criterion rare')
    try:
        with Progress() as progress:
            task = progress.add_task('Images', total=len(images.infos))
            x = scanner.observe(
                list(images.infos.values()),
                args.batch_size,
                progress=lambda done: progress.update(task, completed=done),
            )
    except (OSError, ValueError) as error:
        parser.error(str(error))
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
    score = scanner.score(x)
    written = write_ranking(images, score, args.out, args.images, scanner.score_name)
    print(f'Ranking: {written[0]}\nGallery: {written[1]}')


if __name__ == '__main__':
    main()
