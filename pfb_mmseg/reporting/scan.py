"""How common each image of a data set looks to a trained model."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor

from ..core import AdaptiveDensityEstimator
from ..core.representation import pool_features
from ..segmentors.apply import apply_pfb
from .images import leaf_configs, without_annotations
from .run import load_checkpoint


class Scanner:
    """A trained model up to its blocking point, in eval mode.

    An image's representation here depends on the image alone: BatchNorm uses its running
    statistics, images go through the test pipeline, and nothing is learnt.

    Args:
        config: with or without PFB.
        checkpoint: file of a model of that config, trained with or without PFB.
        device: where the model runs.

    Attributes:
        estimator: AdaptiveDensityEstimator; of the checkpoint, if that has one.
        has_estimate: whether it has, with all centroids seeded.

    Raises:
        ValueError: the checkpoint is of another model, or the config cannot be given PFB.
    """

    def __init__(self, config: Config, checkpoint: str | Path, device: str = 'cpu') -> None:
        init_default_scope(config.get('default_scope', 'mmseg'))
        config = copy.deepcopy(config)
        if 'pfb' not in config.model:
            apply_pfb(config, prune_ratio=0.3)
        weights = load_checkpoint(checkpoint)
        weights = weights.get('state_dict', weights)
        model = revert_sync_batchnorm(MODELS.build(config.model)).to(device)
        model.pfb.prepare()
        own = model.state_dict()
        estimate = {k for k in own if k.startswith('pfb.')}
        wrong = [
            name
            for name in own
            if name not in estimate
            and (name not in weights or weights[name].shape != own[name].shape)
        ]
        if wrong:
            raise ValueError(
                f'{checkpoint} is no checkpoint of this config: {len(wrong)} of {len(own)} weights '
                f'are missing or of another shape, {wrong[0]!r} for example'
            )
        kept = {k: v for k, v in weights.items() if k in own or k.startswith('pfb.')}
        with warnings.catch_warnings():  # no estimate, or one of another size: `has_estimate`
            warnings.simplefilter('ignore')
            model.load_state_dict({**own, **kept}, strict=False)
        self.model = model.eval()
        self.device = device
        self.estimator: AdaptiveDensityEstimator = model.pfb.pruner.estimator
        self.has_estimate = self.estimator.ready
        self._pipeline = Compose(_test_pipeline(config))

    @torch.no_grad()
    def represent(
        self,
        infos: Sequence[dict],
        batch_size: int = 8,
        seconds: float = float('inf'),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Representations of images; neighbours of one size are run together.

        Args:
            infos: what the data set knows of each, in order.
            batch_size: most images to run together.
            seconds: after which no new batch is begun.
            progress: called with the number of images done.

        Returns:
            (M, D) float32 of the first M images, in order; all of them unless time ran out.
        """
        rows, stop = [], time.monotonic() + seconds
        for batch in _batches(map(self._load, infos), batch_size):
            data = {key: [item[key] for item in batch] for key in ('inputs', 'data_samples')}
            images = self.model.data_preprocessor(data, training=False)['inputs']
            vectors = self.model.pfb.point.score(images)
            rows.append(pool_features(vectors, self.estimator.dim).cpu())
            progress(sum(map(len, rows)))
            if time.monotonic() > stop:
                break
        return torch.cat(rows) if rows else torch.zeros(0, self.estimator.dim)

    def _load(self, info: dict) -> dict:
        return self._pipeline(copy.deepcopy(info))

    def fit(self, x: Tensor) -> None:
        """Learn the density of these representations, for a model that was trained without PFB.

        Two rounds over the rows in a fixed random order: in the first the centroids settle.

        Raises:
            ValueError: there are fewer images than centroids.
        """
        if len(x) < self.estimator.num_centroids:
            raise ValueError(
                f'{len(x)} images are too few for {self.estimator.num_centroids} centroids; set '
                f'model.pfb.estimator.num_centroids={max(1, len(x) // 4)} or less'
            )
        x = x.to(self.device)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(self.device)
        for _ in range(2):
            for rows in order.split(self.estimator.num_centroids):
                self.estimator.update(x[rows])
        self.has_estimate = True

    def log_density(self, x: Tensor) -> Tensor:
        """(N,) float32 of (N, D) representations, natural log."""
        return torch.cat(
            [self.estimator.log_density(rows.to(self.device)).cpu() for rows in x.split(4096)]
        )


def _batches(items: Iterable[dict], batch_size: int) -> Iterable[list[dict]]:
    batch: list[dict] = []
    for item in items:
        if batch and (len(batch) == batch_size or item['inputs'].shape != batch[0]['inputs'].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _test_pipeline(config: Config) -> list:
    """Of the test or validation data, which is without chance; labels are not needed."""
    for name in ('test_dataloader', 'val_dataloader'):
        if config.get(name):
            pipeline = leaf_configs(config[name]['dataset'])[0]['pipeline']
            return without_annotations(pipeline)
    raise ValueError('the config has neither test_dataloader nor val_dataloader')
