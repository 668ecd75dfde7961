"""AgreementHook: do cheap scores rank a batch as the loss of the whole network does?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from pfb_mmseg.core.checks import check_integer
from pfb_mmseg.hooks.model import find_filter
from pfb_mmseg.models import HostCandidates

AGREEMENT_NAME = 'agreement.json'


@HOOKS.register_module()
class AgreementHook(Hook):
    """Scores batches in several ways before they are trained on; for runs in a single process.

    For every batch looked at, the images are ranked by the loss of the decode head after a forward
    pass of the whole network, as loss top-k does it, and by the loss of the exit that
    ``criterion='hard'`` has, with its features pooled by each of ``pools``. What is written to
    ``<work_dir>/agreement.json`` is Spearman's rank correlation of each of the latter with the
    former: a list of ``{'iteration': t, 'pool_1': rho, ...}``.

    Args:
        interval: iterations between two batches that are looked at, at least 1.
        pools: sides of the squares of features that are averaged, each at least 1.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model has no exit.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 10, pools: tuple[int, ...] = (1, 2, 4)) -> None:
        check_integer('interval', interval, low=1)
        for pool in pools:
            check_integer('pools', pool, low=1)
        self.interval = interval
        self.pools = tuple(pools)
        self._rows: list[dict[str, float]] = []

    def before_train(self, runner) -> None:
        self._model = runner.model
        self._pfb = find_filter(runner.model)
        self._pfb.prepare()
        if self._pfb.exit is None:
            raise ValueError(
                'AgreementHook compares the losses of an exit, which the model lacks; set '
                "model.pfb.criterion='hard', or remove the hook"
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.interval:
            return
        data = self._model.data_preprocessor(data_batch, training=True)
        chosen = self._pfb.exit.pool
        with torch.no_grad():
            losses = self._candidates(data).losses()
            row = {'iteration': runner.iter}
            for pool in self.pools:
                self._pfb.exit.pool = pool
                row[f'pool_{pool}'] = spearman(self._candidates(data).exit_losses(), losses)
        self._pfb.exit.pool = chosen
        self._rows.append(row)

    def after_train(self, runner) -> None:
        path = Path(runner.work_dir) / AGREEMENT_NAME
        path.write_text(json.dumps(self._rows, indent=1) + '\n')

    def _candidates(self, data: dict) -> HostCandidates:
        return HostCandidates(self._model, self._pfb, data['inputs'], data['data_samples'])


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two (N,) tensors without ties, N at least 2; in [-1, 1]."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
