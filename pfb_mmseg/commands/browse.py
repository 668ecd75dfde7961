"""Rank the images of a data set by their score under a model, the rarest or the hardest first.

Writes ranking.csv and a page with the two ends of it; nothing is trained. Rank by how common the
images look to choose what to label or what to leave out. The hardest are worth a look: they are
rare, difficult, or labelled wrongly.
"""

from __future__ import annotations

import argparse
from pickle import UnpicklingError

from .arguments import ToolParser, add_config, check_checkpoint, whole


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    about = 'checkpoint file, trained with or without PFB'
    parser.add_argument('checkpoint', help=about)
    parser.add_argument(
        '--criterion',
        metavar='NAME',
        help="what scores: 'rare' (log density), 'loss_topk' (loss of the whole model, which also "
        "stands in for 'hard') or one of your own; default: the config's, 'rare' if that has none",
    )
    parser.add_argument('--part', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--out', default='work_dirs/browse_selection', help='folder to write to')
    parser.add_argument('--images', type=whole(0), default=24, metavar='N', help='in each gallery')
    parser.add_argument('--batch-size', type=whole(1), default=8, metavar='N')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    check_checkpoint(parser, args.checkpoint)
    from ..convert.apply import apply_pfb
    from ..report.browse import write_ranking
    from ..report.images import ImageSet
    from ..report.scan import Scanner
    from . import launch

    config = launch.named_config(parser, args)
    try:
        images = ImageSet(config, args.part)
        if not images.infos:
            parser.error(f'the {args.part} data set is empty; `pfb check` tells why')
        criterion = args.criterion
        if 'pfb' not in config.model:
            apply_pfb(config, prune_ratio=0.3)  # any: nothing is trained
            criterion = criterion or 'rare'
        with launch.explain_refused_checkpoint():
            scanner = Scanner(config, args.checkpoint, criterion)
        if not scanner.has_estimate:
            print(
                'The density is learnt from these images: the checkpoint has no estimate of this '
                'shape. It was trained without PFB, or with another num_centroids or dim.'
            )
        score = scanner.score(images.infos, args.batch_size)
    except (OSError, AssertionError, TypeError, ValueError, UnpicklingError) as error:
        parser.error(str(error))
    written = write_ranking(images, score, args.out, args.images, scanner.score_name)
    print(f'Ranking: {written[0]}\nGallery: {written[1]}')
