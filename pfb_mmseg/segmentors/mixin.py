"""PFBMixin: a filter in front of a model's ``loss``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..blocking import (
    BlockingPoint,
    default_stage,
    least_trainable,
    scoring_mode,
    share_behind,
    shrink,
)
from ..core import AdaptiveDensityEstimator, BatchPruner, KeepQuota, Selection
from ..core.checks import check_choice, check_given, check_keys, check_number, check_sizes
from ..core.ranks import all_values, rank
from .filter import BatchFilter
from .samples import select_samples

STRATEGIES = ('two_pass', 'single_pass')
SCORE_STATISTICS = ('batch', 'running')
_ONE_SHAPE = "Crop or pad to one size (data_preprocessor=dict(size=...)), or choose 'rank'"
SCORE_DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


class PartialForwardBlocking(BatchFilter):
    """What a model needs to block images: where, how many, which. Holds the state, no weights.

    Args:
        model: the host; only its ``backbone`` and heads are looked at.
        strategy: ``'two_pass'`` scores the batch without gradient up to the blocking point, then
            trains on the kept images alone, for any backbone; ``'single_pass'`` is the paper's
            wording: one pass, cut behind the blocking point, for backbones that are a chain.
        block_after: dotted name of a module, ``'backbone.layer3'``; None takes the stage that the
            auxiliary head reads (supplement, B.2), see :func:`default_stage`.
        estimator: options of :class:`AdaptiveDensityEstimator`; ``dim`` is by default 128 or the
            number of channels at the blocking point, if that is less.
        min_keep: the least number of images kept per process; None is 1, or 2 where a head
            normalises single pixels with BatchNorm, which cannot be trained on one image.
        score_scale: two_pass only, in (0, 1]: relative size of the images in the scoring pass.
        score_statistics: two_pass only: BatchNorm in the scoring pass normalises with the
            ``'batch'`` (as training does) or with the ``'running'`` statistics.
        score_dtype: two_pass only: ``'float16'`` or ``'bfloat16'`` runs the scoring pass under
            autocast; None scores in the precision of the training pass.
        input_shape: (C, H, W) of the blank image with which the blocking point is checked before
            training; None finds one, see :class:`BlockingPoint`.
        **pruner: ``prune_ratio``, ``criterion``, ``exploration``, ``exploration_space``, ``seed``
            and ``selection_scope`` of :class:`BatchPruner`; ``'global'`` with two_pass only.

    Raises:
        TypeError, ValueError: an option is misspelt or outside its range, or the model has no such
            module. What takes a forward pass to find out is found in :meth:`prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strategy: str = 'two_pass',
        block_after: str | None = None,
        estimator: dict | None = None,
        min_keep: int | None = None,
        score_scale: float = 1.0,
        score_statistics: str = 'batch',
        score_dtype: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        **pruner: Any,
    ) -> None:
        super().__init__()
        check_choice('strategy', strategy, STRATEGIES)
        check_number('score_scale', score_scale, 0, 1, open_low=True)
        check_choice('score_statistics', score_statistics, SCORE_STATISTICS)
        if score_dtype is not None:
            check_choice('score_dtype', score_dtype, SCORE_DTYPES)
        if strategy == 'single_pass' and pruner.get('selection_scope', 'rank') != 'rank':
            raise ValueError(
                f'selection_scope={pruner["selection_scope"]!r} moves images between ranks before '
                "the training pass; strategy='single_pass' has run half of it by then. Leave it "
                "out or use strategy='two_pass'"
            )
        if input_shape is not None:
            check_sizes('input_shape', input_shape, num=3)
        if strategy == 'single_pass' and (
            score_scale != 1 or score_statistics != 'batch' or score_dtype is not None
        ):
            raise ValueError(
                'score_scale, score_statistics and score_dtype shape a separate scoring pass; '
                "strategy='single_pass' has none. Leave them out or use strategy='two_pass'"
            )
        self.strategy = strategy
        self.score_scale = score_scale
        self.score_statistics = score_statistics
        self.score_dtype = score_dtype
        self.point = BlockingPoint(model, _point_name(model, block_after), input_shape)
        self.prepared = False
        self._estimator_options = {} if estimator is None else estimator
        self.pruner = BatchPruner(
            estimator=_build_estimator(self._estimator_options),
            min_keep=least_trainable(model) if min_keep is None else min_keep,
            **pruner,
        )
        self._shape: tuple[int, ...] | None = None

    @property
    def quota(self) -> KeepQuota:
        return self.pruner.quota

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        return self.pruner.estimator if self.pruner.needs_features else None

    @torch.compiler.disable
    def prepare(self, like: Tensor | None = None) -> None:
        """Look at the model before it is trained: its channels, and whether it can be blocked.

        Only the first call does anything. :class:`PFBHook` calls it before training where it can;
        else the first training step does, so that a model for inference is never run. In a
        distributed run all processes must call it at the same moment.

        Args:
            like: images of whose type and on whose device the blank ones shall be; None: of the
                backbone's parameters.

        Raises:
            ValueError: the blocking point or an option does not fit the model.
        """
        if self.prepared:
            return
        self.point.prepare(like)
        if self.strategy == 'single_pass':
            self.point.check_cut(like)
        if self.score_scale != 1:
            self.point.check_scale(self.score_scale, like)
        self._resolve_dim(self.point.num_channels)
        self.prepared = True

    def _resolve_dim(self, num_channels: int) -> None:
        estimator = self.pruner.estimator
        if 'dim' in self._estimator_options:
            if estimator.dim > num_channels:
                raise ValueError(
                    f'estimator dim={estimator.dim} is more than the {num_channels} channels at '
                    f'the blocking point; set estimator=dict(dim={num_channels}) or less, or leave '
                    'dim out'
                )
        elif estimator.dim != min(128, num_channels):
            options = {**self._estimator_options, 'dim': min(128, num_channels)}
            self.pruner.estimator = _build_estimator(options).to(estimator.centroids.device)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # A checkpoint is loaded before the number of channels is known; it knows.
        stored = state_dict.get(f'{prefix}pruner.estimator.centroids')
        if stored is not None and not self.prepared and 'dim' not in self._estimator_options:
            options = {**self._estimator_options, 'dim': stored.shape[1]}
            self.pruner.estimator = _build_estimator(options).to(
                self.pruner.estimator.centroids.device
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def describe(self, model: nn.Module) -> str:
        if not self.prepared:
            return (
                f'PFB blocks {self.quota.prune_ratio:.0%} of the images behind '
                f'backbone.{self.point.name} ({self.strategy}; looked at in the first step)'
            )
        share = share_behind(model, self.point, lambda image: model(image, mode='tensor'))
        return (
            f'PFB blocks {self.quota.prune_ratio:.0%} of the images behind '
            f'backbone.{self.point.name} ({self.point.num_channels} channels, {self.strategy}), '
            f'where {"an unknown share" if share is None else f"{share:.0%}"} of the forward pass '
            'is still to come'
        )

    @torch.compiler.disable  # what it calls changes in every step, see BatchPruner
    def score(self, images: Tensor) -> Selection:
        """The scoring pass of two_pass: (N, C, H, W) images in, who stays out."""
        if not self.pruner.needs_features:
            return self.pruner.select(images)
        if self.score_scale != 1:
            images = shrink(images, self.score_scale)
        dtype = SCORE_DTYPES.get(self.score_dtype)
        with scoring_mode(self.point.encoder, self.score_statistics == 'batch'):
            if dtype is None:
                return self.pruner.select(self.point.score(images))
            with torch.autocast(images.device.type, dtype=dtype, cache_enabled=False):
                vectors = self.point.score(images)
            return self.pruner.select(vectors)

    @torch.compiler.disable
    def narrow(self, images: Tensor, data_samples: list | Tensor) -> tuple[Tensor, list | Tensor]:
        """Images and labels of those that :attr:`selection` says stay here."""
        selection = self.selection
        if selection.exchange is not None:
            self._check_shape(images)
        return selection.take(images), select_samples(data_samples, selection)

    def _check_shape(self, images: Tensor) -> None:
        """Images can only be handed on if their shapes agree; asked of the others once."""
        shape = tuple(images.shape[1:])
        if self._shape is None:
            shapes = all_values(shape, images.device)
            if len(set(shapes)) > 1:
                raise ValueError(
                    "selection_scope='global' hands images from rank to rank, which takes the "
                    f'same shape everywhere; found {", ".join(map(str, shapes))}. {_ONE_SHAPE}'
                )
            self._shape = shape
        if shape != self._shape:
            raise ValueError(
                "selection_scope='global' takes images of the same shape in every iteration; "
                f'found {shape} on rank {rank()} after {self._shape}. {_ONE_SHAPE}'
            )


class PFBMixin:
    """Makes the training step of any OpenMMLab model a blocked one.

    ``class MySegmentor(PFBMixin, AnySegmentor)`` takes one more argument, ``pfb``, a dict with the
    options of :class:`PartialForwardBlocking`. The host must have a ``backbone`` and
    ``loss(inputs, data_samples)``. Everything but ``loss`` in training mode is the host's own.
    """

    def __init__(self, *args: Any, pfb: dict | None = None, **kwargs: Any) -> None:
        check_given(type(self).__name__, 'pfb', pfb, kwargs, example='pfb=dict(prune_ratio=0.3)')
        check_keys('pfb', pfb, _OPTIONS)
        super().__init__(*args, **kwargs)
        self.pfb = PartialForwardBlocking(self, **pfb)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of the images that stay (Algorithm 1, lines 4–11).

        Args:
            inputs: (N, C, H, W).
            data_samples: N data samples, or labels stacked in one tensor (N, ...).

        Returns:
            The host's losses, over the kept images only.

        Raises:
            ValueError: ``selection_scope='global'``, and images or labels of several shapes.
            TypeError: single_pass with stacked labels, which cannot be narrowed on the way.
        """
        pfb = self.pfb
        pfb.selection = None
        if self.training and not pfb.prepared:
            pfb.prepare(inputs)
        if not (self.training and pfb.pruning):
            return super().loss(inputs, data_samples)
        if pfb.pruner.keeps_all(len(inputs)):
            pfb.pruner.skip()
            return super().loss(inputs, data_samples)
        if pfb.strategy == 'single_pass':
            losses = self._single_pass_loss(inputs, data_samples)
        else:
            pfb.selection = pfb.score(inputs)
            if not pfb.selection.unchanged:
                inputs, data_samples = pfb.narrow(inputs, data_samples)
            losses = super().loss(inputs, data_samples)
        # Only now: what the other processes kept has travelled during the forward pass.
        pfb.pruner.learn()
        return losses

    @torch.compiler.disable  # a compiled network would not call the hooks that cut it
    def _single_pass_loss(self, inputs: Tensor, data_samples: list) -> dict:
        if isinstance(data_samples, Tensor):
            raise TypeError(
                "strategy='single_pass' needs data_samples as a list, got a tensor; use "
                "strategy='two_pass'"
            )
        pfb = self.pfb
        # The heads read the list after the backbone has run: it is narrowed with the batch.
        data_samples = list(data_samples)

        def choose(vectors: Tensor) -> Tensor:
            pfb.selection = pfb.pruner.select(vectors)
            if not pfb.selection.unchanged:
                data_samples[:] = select_samples(data_samples, pfb.selection)
            return pfb.selection.indices

        with pfb.point.cut(choose):
            return super().loss(inputs, data_samples)


def _build_estimator(options: dict) -> AdaptiveDensityEstimator:
    allowed = inspect.signature(AdaptiveDensityEstimator).parameters
    check_keys('pfb.estimator', options, allowed)
    return AdaptiveDensityEstimator(**options)


def _point_name(model: nn.Module, block_after: str | None) -> str:
    if block_after is not None:
        room, _, name = str(block_after).partition('.')
        if room != 'backbone' or not name:
            raise ValueError(
                f'block_after={block_after!r}: expected the dotted name of a module inside the '
                "backbone, e.g. 'backbone.layer3'"
            )
        return name
    heads = getattr(model, 'auxiliary_head', None)
    heads = heads if isinstance(heads, nn.ModuleList) else [heads]
    read = [head.in_index for head in heads if isinstance(getattr(head, 'in_index', None), int)]
    return default_stage(model.backbone, read)


_OWN = inspect.signature(PartialForwardBlocking).parameters
_OPTIONS = [name for name, p in _OWN.items() if name != 'model' and p.kind is not p.VAR_KEYWORD] + [
    name for name in inspect.signature(BatchPruner).parameters if name not in _OWN
]
