"""How a trained model scores each image of a data set: how common it looks, or how hard it is."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from ..core import AdaptiveDensityEstimator, FeatureCandidates
from ..core.criterion import CRITERIA, CriterionOption
from ..data.leaves import leaf_configs
from ..models.classification.exits import LinearExit
from ..models.mixin import BlockedStep
from ..models.segmentation.heads import label_maps, last_head, nearest
from .images import without_annotations
from .run import load_checkpoint

_LABELS = ('gt_sem_seg', 'gt_label', 'gt_score')
_MOST_COMPARED = 4096
# Images are seen at full size and precision, by one process, and nothing learns from them.
_OPTIONS = dict(
    strategy='two_pass',
    score_scale=1.0,
    process_group=None,
    exit_loss_weight=0,
)


class Scanner:
    """A trained model and the criterion that it is asked for, in eval mode.

    BatchNorm uses its running statistics, images go through the test pipeline, and nothing is
    learnt, so an image's score depends on the image alone. A small early exit is the exception: it
    has no running statistics. That of a segmentor normalises over the images that are run together,
    that of a classifier over all images, or over thousands of them that are drawn at random.

    Args:
        config: with ``model.pfb``.
        checkpoint: file of a model of that config, trained with or without PFB.
        device: where the model runs.
        criterion: name of the one that scores; None: the config's, or ``'rare'`` where that one has
            no score.

    Attributes:
        criterion: Criterion that scores.
        estimator: AdaptiveDensityEstimator of a criterion that has one, else None; of the
            checkpoint, if that has one.
        has_estimate: whether it needs none, or the checkpoint's has all centroids seeded.

    Raises:
        TypeError, ValueError: the checkpoint is of another model, or the criterion has no score.
    """

    def __init__(
        self,
        config: Config,
        checkpoint: str | Path,
        device: str = 'cpu',
        criterion: str | None = None,
    ) -> None:
        init_default_scope(config.get('default_scope', 'mmseg'))
        config = copy.deepcopy(config)
        chosen = _criterion(config.model.pfb.get('criterion', 'rare'), criterion)
        self._asks_exit = CRITERIA.build(chosen).scoring_pass == 'exit'
        options = {**config.model.pfb, **_OPTIONS, 'criterion': chosen}
        if not self._asks_exit:
            options.pop('exit', None)
        config.model.pfb = options
        self.model = revert_sync_batchnorm(MODELS.build(config.model)).to(device).eval()
        self.model.pfb.prepare()
        self._load(checkpoint)
        self.device = device
        self.criterion = self.model.pfb.pruner.criterion
        self.estimator: AdaptiveDensityEstimator | None = self.model.pfb.pruner.estimator
        self.has_estimate = self.estimator is None or self.estimator.ready
        self._reads_labels = self.criterion.scoring_pass in ('exit', 'whole')
        self._pipeline = Compose(_test_pipeline(config, self._reads_labels))
        # The label that the loss leaves out, for what is padded.
        default = getattr(self.model.data_preprocessor, 'seg_pad_val', 255)
        self._ignore = getattr(last_head(self.model), 'ignore_index', default)

    @property
    def score_name(self) -> str:
        """What :meth:`score` measures, see :class:`Criterion`."""
        return self.criterion.score_name

    def _load(self, checkpoint: str | Path) -> None:
        weights = load_checkpoint(checkpoint)
        weights = weights.get('state_dict', weights)
        own, exit = self.model.state_dict(), self.model.pfb.exit
        needed = [name for name in own if not name.startswith('pfb.')]
        wrong = [k for k in needed if k not in weights or weights[k].shape != own[k].shape]
        if wrong:
            raise ValueError(
                f'{checkpoint} is no checkpoint of this config: {len(wrong)} of {len(own)} weights '
                f'are missing or of another shape, {wrong[0]!r} for example'
            )
        kept = {k: v for k, v in weights.items() if k in own or k.startswith('pfb.')}
        with warnings.catch_warnings():  # no estimate, or one of another size: `has_estimate`
            warnings.simplefilter('ignore')
            self.model.load_state_dict({**own, **kept}, strict=False)
        if exit is not None and not exit.ready:
            raise ValueError(
                f'{checkpoint} has no trained early exit behind {self.model.pfb.point.path}, and '
                "no auxiliary head of the model fits there. Rank by criterion 'loss_topk', the "
                'loss of the whole model'
            )

    @torch.no_grad()
    def observe(
        self,
        infos: Sequence[dict],
        batch_size: int = 8,
        seconds: float = float('inf'),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """What the criterion sees of images; neighbours of one size are run together.

        Args:
            infos: what the data set knows of each, in order.
            batch_size: most images to run together.
            seconds: after which no new batch is begun.
            progress: called with the number of images done.

        Returns:
            (M, D) or (M,) float32 of the first M images, in order; all of them unless time ran out.
            For criteria of the density these are representations, see :func:`pool_features`.

        Raises:
            ValueError: the criterion compares images by their labels, and one has none.
        """
        observed, samples, done, stop = [], [], 0, time.monotonic() + seconds
        compares = self._asks_exit and isinstance(self.model.pfb.exit, LinearExit)
        for batch in _batches(map(self._load_image, infos), batch_size):
            data = {key: [item[key] for item in batch] for key in ('inputs', 'data_samples')}
            data = self.model.data_preprocessor(data, training=False)
            images, labels = data['inputs'], data['data_samples']
            if self._reads_labels and 'gt_sem_seg' in labels[0]:
                labels = self._label_maps(batch, images)
            step = BlockedStep(self.model, images, labels, self.model.loss)
            if compares:  # when all are there
                observed.append(step.features().cpu())
                samples += labels
            else:
                observed.append(self.criterion.observe(step).cpu())
            done += len(batch)
            progress(done)
            if time.monotonic() > stop:
                break
        if not observed:
            return torch.zeros(0)
        found = torch.cat(observed)
        return self._compare(found, samples) if compares else found

    def _compare(self, vectors: Tensor, samples: list) -> Tensor:
        """(M,) of all images: neighbours in a data set, such as those of one class, tell nothing
        of what is usual."""
        observed = torch.zeros(len(vectors))
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
        for rows in order.tensor_split(-(-len(order) // _MOST_COMPARED)):
            part = vectors[rows].to(self.device)
            labels = [samples[i] for i in rows.tolist()]
            images = _AtTheExit(part, labels, self.model.pfb.exit)
            observed[rows] = self.criterion.observe(images).cpu()
        return observed

    def _load_image(self, info: dict) -> dict:
        if not self._reads_labels:
            return self._pipeline(copy.deepcopy(info))
        try:
            item = self._pipeline(copy.deepcopy(info))
        except KeyError as error:
            raise self._unlabelled(info) from error
        if not any(name in item['data_samples'] for name in _LABELS):
            raise self._unlabelled(info)
        return item

    def _unlabelled(self, info: dict) -> ValueError:
        return ValueError(
            f'{info.get("img_path", "an image")} has no labels, by which {self.score_name} is '
            "measured; rank by criterion 'rare', which needs none, or another part of the data"
        )

    def _label_maps(self, batch: list[dict], images: Tensor) -> Tensor:
        """(N, 1, H, W) labels laid over the images, as these came out of the preprocessor."""
        size = batch[0]['inputs'].shape[-2:]
        # Test pipelines resize the image alone.
        maps = [nearest(label_maps([item['data_samples']]), size) for item in batch]
        missing = [whole - part for whole, part in zip(images.shape[-2:], size, strict=True)]
        labels = F.pad(torch.cat(maps), (0, missing[1], 0, missing[0]), value=self._ignore)
        return labels.to(images.device)

    def fit(self, x: Tensor) -> None:
        """Learn the density of these representations, for a model that was trained without PFB.

        Two rounds over the rows in a fixed random order: in the first the centroids settle.

        Raises:
            ValueError: there are fewer images than centroids.
        """
        if len(x) < self.estimator.num_centroids:
            raise ValueError(
                f'{len(x)} images are too few for {self.estimator.num_centroids} centroids; set '
                "model.pfb.criterion=dict(type='rare', estimator=dict(num_centroids="
                f'{max(1, len(x) // 4)})) or less'
            )
        x = x.to(self.device)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(self.device)
        for _ in range(2):
            for rows in order.split(self.estimator.num_centroids):
                self.estimator.update(x[rows])
        self.has_estimate = True

    @torch.no_grad()
    def score(self, observation: Tensor) -> Tensor:
        """(N,) float32 of what :meth:`observe` returned, such as log densities (natural log)."""
        parts = observation.split(4096)
        return torch.cat([self.criterion.score(rows.to(self.device)).cpu() for rows in parts])


class _AtTheExit(FeatureCandidates):
    """Images of which only the vectors at a classifier's early exit are kept.

    Args:
        vectors: (N, C).
        samples: N data samples.
        exit: of the model.
    """

    def __init__(self, vectors: Tensor, samples: list, exit: LinearExit) -> None:
        super().__init__(vectors)
        self.samples = samples
        self._exit = exit

    def exit_losses(self) -> Tensor:
        return self._exit.sums(self._exit.layers(self.features()), self.samples)[0]


def _criterion(of_config: CriterionOption, wanted: str | None) -> CriterionOption:
    """The one to rank by: the config's with its options, unless another one is wanted.

    Raises:
        TypeError, ValueError: there is none of that name, or it has no score.
    """
    name = of_config.get('type') if isinstance(of_config, dict) else of_config
    if wanted is None:
        return of_config if CRITERIA.build(of_config).score_name else 'rare'
    if CRITERIA.build(wanted).score_name is None:
        scores = ', '.join(repr(name) for name in CRITERIA if CRITERIA.build(name).score_name)
        raise ValueError(
            f'criterion {wanted!r} gives no image a score of its own; rank by one of {scores}'
        )
    return of_config if wanted == name else wanted


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
    """Of the test or validation data, which is without chance."""
    pipelines = [
        leaf_configs(config[name]['dataset'])[0]['pipeline']
        for name in ('test_dataloader', 'val_dataloader')
        if config.get(name)
    ]
    if not pipelines:
        raise ValueError('the config has neither test_dataloader nor val_dataloader')
    if not labelled:
        return without_annotations(pipelines[0])
    # The test data may have no labels to be loaded, the validation data has.
    return next((p for p in pipelines if p != without_annotations(p)), pipelines[-1])
