"""Trains a config and shows how well its exit ranks images: as the whole network's loss does?

The rank correlation (Spearman) of both is taken within batches all over the run, for the exit as it
stands and with its features pooled. Train on all images with --prune-ratio 0, or with PFB.
"""

from pfb_mmseg import apply_pfb  # comes first: it says what is missing or does not fit

# isort: split
import argparse
import json
from pathlib import Path

import numpy as np
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from _cli import ToolParser, add_config_options, named_config, seed_number
from pfb_mmseg.hooks.agreement_hook import AGREEMENT_NAME


def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, with PFB or without')
    parser.add_argument('--prune-ratio', type=float, default=0.0, metavar='P')
    parser.add_argument('--exit', choices=['auxiliary', 'own'], help='default: as the model has it')
    parser.add_argument('--pools', nargs='+', type=int, default=[1, 2, 4], metavar='SIDE')
    parser.add_argument('--interval', type=int, default=5, help='iterations between two batches')
    parser.add_argument('--seed', type=seed_number, default=0)
    parser.add_argument('--work-dir', default='work_dirs/agreement')
    add_config_options(parser)
    args = parser.parse_args()
    cfg = named_config(parser, args)
    try:
        apply_pfb(cfg, args.prune_ratio)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    cfg.model.pfb.criterion = dict(type='hard', exit=args.exit)
    hook = dict(type='AgreementHook', interval=args.interval, pools=args.pools)
    cfg.custom_hooks = [*cfg.custom_hooks, hook]
    cfg.randomness = dict(seed=args.seed)
    cfg.work_dir = str(Path(args.work_dir) / Path(args.config).stem)
    runner = Runner.from_cfg(cfg)
    runner.train()
    show(json.loads((Path(cfg.work_dir) / AGREEMENT_NAME).read_text()), runner.max_iters)


def show(rows: list[dict], max_iters: int) -> None:
    """A table with a line for each third of the run."""
    names = [name for name in rows[0] if name != 'iteration']
    table = Table(title="Spearman's rho with the loss of the whole network, within batches")
    table.add_column('iterations')
    for name in names:
        table.add_column(name.replace('_', ' '), justify='right')
    for third in range(3):
        first, last = (round(max_iters * (third + i) / 3) for i in (0, 1))
        part = [row for row in rows if first <= row['iteration'] < last]
        if part:
            cells = [f'{np.mean([row[name] for row in part]):.2f}' for name in names]
            table.add_row(f'{first} to {last - 1}', *cells)
    Console().print(table)


if __name__ == '__main__':
    main()
