"""How a trained model scores each image of a data set: how common it looks, or how hard it is.

A loss is that of the whole model, of which the early exit's is a cheap guess.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from ..core.criterion import CRITERIA, CriterionOption
from ..data.leaves import leaf_configs
from ..models.mixin import BlockedStep
from ..models.segmentation.heads import label_maps, last_head, nearest
from ..progress import track
from .images import without_annotations

_LABELS = ('gt_sem_seg', 'gt_label', 'gt_score')
_MOST_COMPARED = 4096
# Images are seen at full size and precision, by one process, and by no early exit.
_OPTIONS = dict(
    strategy='two_pass', score_scale=1.0, process_group=None, exit=None, exit_loss_weight=0
)


class Scanner:
    """A trained model and the criterion that it is asked for, in eval mode.

    BatchNorm uses its running statistics and images go through the test pipeline, so an image's
    score depends on the image alone.

    Args:
        config: with ``model.pfb``.
        checkpoint: file of a model of that config, trained with or without PFB.
        criterion: name of the one that scores; None: the config's, or ``'rare'`` where that one has
            no score. In place of one that asks the early exit, ``'loss_topk'`` takes the loss of
            the whole model.

    Attributes:
        score_name (str): what :meth:`score` measures, see :class:`Criterion`.
        has_estimate (bool): False if the criterion needs a density estimate of its shape and the
            checkpoint has none.

    Raises:
        TypeError, ValueError: the checkpoint is of another model, or the criterion has no score.
    """

    def __init__(
        self, config: Config, checkpoint: str | Path, criterion: str | None = None
    ) -> None:
        init_default_scope(config.get('default_scope', 'mmseg'))
        config = copy.deepcopy(config)
        chosen = _criterion(config.model.pfb.get('criterion', 'rare'), criterion)
        config.model.pfb.update(criterion=chosen, **_OPTIONS)
        self.model = revert_sync_batchnorm(MODELS.build(config.model)).to(get_device()).eval()
        self.model.pfb.prepare()
        self._load(checkpoint)
        self._criterion = self.model.pfb.pruner.criterion
        self._estimator = self.model.pfb.pruner.estimator
        self.score_name = self._criterion.score_name
        self.has_estimate = self._estimator is None or self._estimator.ready
        self._reads_labels = self._criterion.scoring_pass == 'whole'
        self._pipeline = Compose(_test_pipeline(config, self._reads_labels))

    def _load(self, checkpoint: str | Path) -> None:
        weights = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu', 'silent')
        weights = weights.get('state_dict', weights)
        own = self.model.state_dict()
        wrong = [
            name
            for name, value in own.items()
            if not name.startswith('pfb.')
            and (name not in weights or weights[name].shape != value.shape)
        ]
        if wrong:
            raise ValueError(
                f'{checkpoint} is no checkpoint of this config: {len(wrong)} of {len(own)} weights '
                f'are missing or of another shape, {wrong[0]!r} for example'
            )
        with warnings.catch_warnings():  # no estimate, or one of another size: `has_estimate`
            warnings.simplefilter('ignore')
            self.model.load_state_dict(weights, strict=False)

    @torch.no_grad()
    def score(self, infos: Sequence[dict], batch_size: int = 8) -> Tensor:
        """Score images; neighbours of one size run together.

        Where there is no density estimate, it is learnt from these images.

        Args:
            infos: what the data set knows of each of the M images.
            batch_size: most images to run together.

        Returns:
            (M,) float32, such as log densities (natural log).

        Raises:
            ValueError: the criterion compares images by their labels, and one has none; or there
                are too few images to learn a density from.
        """
        x = self._observe(infos, batch_size)
        if not self.has_estimate:
            self._fit(x)
        parts = x.split(_MOST_COMPARED)
        return torch.cat([self._criterion.score(rows.to(get_device())).cpu() for rows in parts])

    def _observe(self, infos: Sequence[dict], batch_size: int) -> Tensor:
        """(M, D) or (M,) float32, what the criterion sees of the images."""
        observed = []
        items = track(map(self._load_image, infos), 'Scoring images', len(infos))
        for batch in _batches(items, batch_size):
            data = {key: [item[key] for item in batch] for key in ('inputs', 'data_samples')}
            data = self.model.data_preprocessor(data, training=False)
            images, labels = data['inputs'], data['data_samples']
            for sample in labels:
                if 'gt_score' in sample:  # integers, which Mixup and CutMix make floats of
                    sample.set_field(sample.gt_score.float(), 'gt_score')
            if self._reads_labels and 'gt_sem_seg' in labels[0]:
                labels = self._label_maps(batch, images)
            step = BlockedStep(self.model, images, labels, self.model.loss)
            observed.append(self._criterion.observe(step).cpu())
        return torch.cat(observed)

    def _fit(self, x: Tensor) -> None:
        num_centroids = self._estimator.num_centroids
        if len(x) < num_centroids:
            raise ValueError(
                f'{len(x)} images are too few for {num_centroids} centroids; set '
                "model.pfb.criterion=dict(type='rare', estimator=dict(num_centroids="
                f'{max(1, len(x) // 4)})) or less'
            )
        for _ in range(2):  # in the first round the centroids settle
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            for rows in order.split(num_centroids):
                self._estimator.update(x[rows].to(get_device()))

    def _load_image(self, info: dict) -> dict:
        try:
            item = self._pipeline(copy.deepcopy(info))
        except KeyError:  # of LoadAnnotations, where the data set knows of no label file
            if not self._reads_labels:
                raise
            item = {'data_samples': ()}
        if self._reads_labels and not any(name in item['data_samples'] for name in _LABELS):
            raise ValueError(
                f'{info.get("img_path", "an image")} has no labels, by which {self.score_name} is '
                "measured; rank by criterion 'rare', which needs none, or another part of the data"
            )
        return item

    def _label_maps(self, batch: list[dict], images: Tensor) -> Tensor:
        """(N, 1, H, W) labels laid over the images, as these came out of the preprocessor."""
        size = batch[0]['inputs'].shape[-2:]
        # Test pipelines resize the image alone.
        maps = [nearest(label_maps([item['data_samples']]), size) for item in batch]
        missing = [whole - part for whole, part in zip(images.shape[-2:], size, strict=True)]
        # What is padded gets the label that the loss leaves out.
        default = getattr(self.model.data_preprocessor, 'seg_pad_val', 255)
        ignored = getattr(last_head(self.model), 'ignore_index', default)
        labels = F.pad(torch.cat(maps), (0, missing[1], 0, missing[0]), value=ignored)
        return labels.to(images.device)


def _criterion(of_config: CriterionOption, wanted: str | None) -> CriterionOption:
    """The one to rank by: the config's with its options, unless another one is wanted."""
    name = of_config.get('type') if isinstance(of_config, dict) else of_config
    chosen = of_config if wanted in (None, name) else wanted
    criterion = CRITERIA.build(chosen)
    if criterion.scoring_pass == 'exit':
        return 'loss_topk'
    if criterion.score_name is not None:
        return chosen
    if wanted is None:
        return 'rare'
    scores = ', '.join(repr(name) for name in CRITERIA if CRITERIA.build(name).score_name)
    raise ValueError(
        f'criterion {wanted!r} gives no image a score of its own; rank by one of {scores}'
    )


def _batches(items: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for item in items:
        if batch and (len(batch) == batch_size or item['inputs'].shape != batch[0]['inputs'].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _test_pipeline(config: Config, labelled: bool) -> list:
    """Of the validation data, else of the test data: without chance."""
    loader = config.get('val_dataloader') or config.get('test_dataloader')
    if not loader:
        raise ValueError('the config has neither val_dataloader nor test_dataloader')
    pipeline = leaf_configs(loader['dataset'])[0]['pipeline']
    return pipeline if labelled else without_annotations(pipeline)
