"""Rank the images of a data set by their score under a model, the rarest or the hardest first.

Writes ranking.csv and a page with the two ends of it; nothing is trained. By how common the images
look, for choosing what to label or what to leave out; by how hard they are, for finding labels that
are wrong.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

from .arguments import ToolParser, add_config, add_config_options


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
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


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if args.images < 0 or args.batch_size < 1:
        parser.error('--images must not be negative, --batch-size at least 1')
    if not Path(args.checkpoint).is_file():
        parser.error(f'checkpoint {args.checkpoint!r} is not a file')
    from mmengine.device import get_device

    from ..convert.apply import apply_pfb
    from ..report.browse import write_ranking
    from ..report.images import ImageSet
    from ..report.scan import Scanner
    from .launch import named_config
    from .progress import shown

    config = named_config(parser, args)
    with shown() as tell:
        try:
            tell('Listing the images', 0, None)
            images = ImageSet(config, args.part)
            device = args.device or get_device()
            if 'pfb' not in config.model:
                apply_pfb(config, prune_ratio=0.3)  # any: nothing is trained
            scanner = Scanner(config, args.checkpoint, device, args.criterion)
        except (OSError, AssertionError, TypeError, ValueError, pickle.UnpicklingError) as error:
            parser.error(str(error))
        if not images.infos:
            parser.error(f'the {args.part} data set is empty; `pfb check` tells why')
        if args.refit and scanner.estimator is None:
            parser.error('--refit learns a density: it goes with --criterion rare')
        try:
            x = scanner.observe(
                images.infos,
                args.batch_size,
                progress=lambda n: tell('Scoring images', n, len(images.infos)),
            )
            if args.refit or not scanner.has_estimate:
                print(f'The density is learnt from these images{_why(args.refit)}.')
                scanner.fit(x)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        score = scanner.score(x)
        written = write_ranking(images, score, args.out, args.images, scanner.score_name, tell)
    print(f'Ranking: {written[0]}\nGallery: {written[1]}')


def _why(asked_for: bool) -> str:
    if asked_for:
        return ''
    return (
        ': the checkpoint has no estimate of this shape; it was trained without PFB or with '
        'another num_centroids or dim'
    )
