"""How well an exit ranks images: as the whole network's loss does, all over a run?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from rich.table import Table

from benchmarks.lab.agreement_hook import AGREEMENT_NAME


def measure(
    cfg: Config,
    work_dir: Path,
    exit: str | None = None,
    pools: Sequence[int] = (1, 2, 4),
    interval: int = 5,
    seed: int = 0,
) -> Table:
    """Trains a config and looks at its exit within batches.

    Args:
        cfg: with PFB; is changed.
        work_dir: of the run.
        exit: ``'auxiliary'`` or ``'own'``; None: as the model has it.
        pools: side lengths by which the features are pooled in front of the exit, one after the
            other.
        interval: iterations between two batches that are looked at.
        seed: of the run.

    Returns:
        The rank correlations (Spearman) of both losses, a line for each third of the run.
    """
    cfg.model.pfb.criterion = dict(type='hard', exit=exit)
    hook = dict(type='AgreementHook', interval=interval, pools=list(pools))
    cfg.custom_hooks = [*cfg.custom_hooks, hook]
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(work_dir)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return _table(json.loads((work_dir / AGREEMENT_NAME).read_text()), runner.max_iters)


def _table(rows: list[dict], max_iters: int) -> Table:
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
    return table
