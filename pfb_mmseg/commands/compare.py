"""Train one config with several methods, ratios and seeds; set accuracy and cost side by side.

Each is a run of `pfb train`. Finished runs are kept: after an interruption, start it again.

At equal time, seed by seed: `short` is full data in the time of a pruned run, `long` a pruned run
in full data's time, `small` full data in batches of the size that is kept, for full data's time.
`short` and `long` are of `hard` if it is there, else of `pfb`, else of the first that prunes. Time
is CPU seconds of the training process on a CPU, where each run has one thread (unless
OMP_NUM_THREADS is set) and loads its images itself, and the wall clock on a GPU; the table has
both.

The lengths follow from measured times, for `small` from a run of a tenth of full data's iterations
(at least 20). The whole schedule is stretched with them. The learning rate stays as it is, also in
smaller batches, unless the config turns MMEngine's auto_scale_lr on. A config that counts epochs is
trained for as many iterations. Classifiers are compared by their top-1 accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import ToolParser, add_config, pair, seed_number, share, whole


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """The type of NAME[:KEY=VALUE,...]: a name, and options of the config."""
    name, _, pairs = text.partition(':')
    if not name or Path(name).name != name:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a name without slashes')
    from mmengine.config import DictAction

    found = argparse.Namespace()
    DictAction([], 'options')(None, found, [pair(text) for text in pairs.split(',') if pairs])
    return name, found.options


def add_arguments(parser: ToolParser) -> None:
    from ..compare.rows import ROWS

    parser.epilog = 'methods:\n' + '\n'.join(f'  {name:<15} {text}' for name, text in ROWS.items())
    add_config(parser)
    parser.add_argument('--methods', nargs='+', choices=ROWS, default=[], metavar='METHOD')
    parser.add_argument(
        '--ratios',
        nargs='+',
        type=share,
        default=[0.3, 0.5, 0.7],
        metavar='P',
        help='shares that each of the pruning methods leaves out (default: %(default)s)',
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        type=variant,
        default=[],
        metavar='NAME[:KEY=VALUE,...]',
        help='further rows, the config with options: single:model.pfb.strategy=single_pass',
    )
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0, 1, 2])
    parser.add_argument(
        '--iters', type=whole(1), help="of full data; shortens the config's whole schedule to it"
    )
    parser.add_argument(
        '--time',
        choices=['cpu', 'wall'],
        help='what is equal at equal time: CPU seconds or the wall clock (default: cpu on a CPU, '
        'wall on a GPU)',
    )
    parser.add_argument('--gpus', type=whole(1), default=1, help='processes of each run')
    parser.add_argument('--work-dir', default='work_dirs/compare')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from mmengine.device import get_device
    from rich.console import Console
    from rich.progress import Progress

    from ..compare import comparison, rows, runs
    from .launch import named_config

    time = args.time or ('cpu' if get_device() == 'cpu' else 'wall')
    config = named_config(parser, args)
    if config.get('val_dataloader') is None:
        parser.error('the config has no val_dataloader: there would be no accuracy to compare')
    root = Path(args.work_dir) / Path(config.filename).stem
    try:
        planned = rows.plan(
            config, args.methods, args.ratios, args.variants, args.iters, args.gpus, time
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    seeds = [*dict.fromkeys(args.seeds)]
    console = Console(markup=False, highlight=False)
    with Progress(console=console) as progress:
        outcomes = runs.run_all(planned, seeds, root, progress, args.gpus, time)
    comparison.report(outcomes, planned[0].name, root, console, time)
