"""PFBMixin: a filter in front of a model's ``loss``."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..blocking import BlockingPoint, StepCost, step_cost
from ..core import AdaptiveDensityEstimator, BatchPruner, Decision, KeepQuota, Selection
from ..core.checks import check_choice, check_given, check_keys, check_number, check_sizes
from ..core.criteria import Rare
from ..core.ranks import ProcessGroupOption, Ranks
from .candidates import SCORE_DTYPES, HostCandidates
from .exits import Exit
from .samples import layout_of, select_samples
from .task import Task, task_of

STRATEGIES = ('two_pass', 'single_pass')
SCORE_STATISTICS = ('batch', 'running')
# Share of a full step above which scoring is worth making cheaper: half of what p = 0.3 may save.
_DEAR = 0.15
_ONE_SHAPE = "Crop or pad to one size (data_preprocessor=dict(size=...)), or choose 'rank'"


class PartialForwardBlocking(nn.Module):
    """What a model needs to block images: where, how many, which. Holds the state.

    Args:
        model: the host; only its encoder and heads are looked at.
        strategy: ``'two_pass'`` scores the batch without gradient up to the blocking point, then
            trains on the kept images alone, for any backbone; ``'single_pass'`` is the paper's
            wording: one pass, cut behind the blocking point, for backbones that are a chain.
        block_after: dotted name of a module, ``'backbone.layer3'``; None takes what the paper does
            for a model of this kind: in a segmentor the stage that the auxiliary head reads
            (supplement, B.2), see :func:`default_stage`, in a classifier :func:`early_stage`.
        criterion: what stays, see :class:`BatchPruner`; ``'rare'`` is the paper's, ``'hard'`` the
            images of highest loss at an exit behind the blocking point.
        estimator: options of :class:`AdaptiveDensityEstimator`, for ``'rare'`` and ``'common'``;
            ``dim`` is by default 128 or the number of channels at the blocking point, if that is
            less.
        min_keep: the least number of images kept per process; None is 1, or 2 where a head
            normalises single pixels with BatchNorm, which cannot be trained on one image.
        score_scale: two_pass only, in (0, 1]: relative size of the images in the scoring pass.
        score_statistics: two_pass only: BatchNorm in the scoring pass normalises with the
            ``'batch'`` (as training does) or with the ``'running'`` statistics.
        score_dtype: two_pass only: ``'float16'`` or ``'bfloat16'`` runs the scoring pass under
            autocast; None scores in the precision of the training pass.
        input_shape: (C, H, W) of the blank image with which the blocking point is checked before
            training; None finds one, see :class:`BlockingPoint`.
        process_group: of the processes that have images of their own, where others share them
            (tensor or sequence parallel); None: all. In a config a function that returns it, or
            its dotted path, see :class:`Ranks`.
        **pruner: ``prune_ratio``, ``exploration``, ``exploration_space``, ``seed`` and
            ``selection_scope`` of :class:`BatchPruner`; ``'global'`` with two_pass only.

    Attributes:
        pruning (bool): whether steps are blocked; PFBHook switches it. True without the hook.
        selection (Selection | None): of the last training step; None if nothing was looked at.
        exit (Exit | None): what tells the losses at the blocking point; None if nobody asks.
        task (Task): the host's kind, and what its heads tell.

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
        criterion: str | dict = 'rare',
        estimator: dict | None = None,
        min_keep: int | None = None,
        score_scale: float = 1.0,
        score_statistics: str = 'batch',
        score_dtype: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        process_group: ProcessGroupOption = None,
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
        self.pruning = True
        self.selection: Selection | None = None
        self.strategy = strategy
        self.score_scale = score_scale
        self.score_statistics = score_statistics
        self.score_dtype = score_dtype
        self.task = task = task_of(model)
        if strategy == 'single_pass' and task.heads_read_images:
            raise ValueError(
                f"strategy='single_pass' narrows what the encoder returns, but the heads of "
                f"{type(model).__name__} read its images too; use strategy='two_pass'"
            )
        name = task.default_stage() if block_after is None else _inside(task, block_after)
        self.point = BlockingPoint(
            model, name, input_shape, encoder_name=task.encoder_name, blank_sizes=task.blank_sizes
        )
        ranks = Ranks(process_group)
        self.pruner = BatchPruner(
            estimator={} if estimator is None else estimator,
            criterion=criterion,
            min_keep=task.min_keep(ranks) if min_keep is None else min_keep,
            process_group=ranks,
            **pruner,
        )
        if strategy == 'single_pass' and self.pruner.criterion.scoring_pass == 'whole':
            raise ValueError(
                f'criterion={criterion!r} needs a forward pass of the whole network before it '
                "chooses, so there is none to cut; use strategy='two_pass'"
            )
        options = self.pruner.criterion.exit_options
        self.exit: Exit | None = None
        if options is not None:
            by_batch = score_statistics == 'batch'
            self.exit = task.build_exit(self.point, by_batch, **options)
            self.pruner.criterion.bind(self.exit.trained)
        self.prepared = False
        self._cost: StepCost | None = None
        self._layout: str | None = None
        # Of the exit's last step, with its graph: (N,).
        self._exit_losses: Tensor | None = None

    @property
    def quota(self) -> KeepQuota:
        return self.pruner.quota

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        """Of the density that decides; None if none does."""
        return self.pruner.estimator if self.quota.prune_ratio > 0 else None

    @torch.compiler.disable
    def prepare(self, like: Tensor | None = None) -> None:
        """Look at the model before it is trained: channels, cost, whether it can be blocked.

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
        self.pruner.criterion.prepare(self.point.num_channels)
        if self.exit is not None:
            self.exit.prepare(like)
            if self.exit.behind and self.strategy == 'single_pass':
                raise ValueError(
                    'the auxiliary head reads what comes behind the blocking point, where '
                    "strategy='single_pass' has chosen already; use an exit of its own, "
                    "criterion=dict(type='hard', exit='own'), or strategy='two_pass'"
                )
        host = self.point.host
        self._cost = step_cost(host, self.point, lambda image: host(image, mode='tensor'), like)
        if self.exit is not None:
            self.exit.choose_pool(None if self._cost is None else self._cost.whole, like)
            if self._cost is not None:
                self._cost = self._cost._replace(exit=self.exit.flops(like))
        self.prepared = True

    def describe(self) -> str:
        """What it does to its host, and what that costs, for the log."""
        ratio, criterion = self.quota.prune_ratio, self.pruner.criterion
        sentence = (
            f'PFB blocks {ratio:.0%} of the images behind {self.point.path} '
            f'({self.strategy}) and keeps {criterion.describe()}'
        )
        if self._cost is None:
            return sentence
        sentence += f'. {self._cost.share_behind:.0%} of the forward pass is still to come there'
        if self.strategy == 'single_pass':
            return sentence
        if criterion.scoring_pass == 'none':
            return f'{sentence}; no image is scored, so that about {ratio:.0%} of a step is saved'
        scoring = self._cost.scoring(criterion.scoring_pass, self.score_scale)
        sentence += (
            f'; scoring all images costs {scoring:.1%} of a full step by operations, so that about '
            f'{max(ratio - scoring, 0):.0%} of a step is saved'
        )
        if criterion.scoring_pass == 'shallow' and scoring > _DEAR:
            scale = 'score_scale=0.5' if self.score_scale > 0.5 else 'a smaller score_scale'
            sentence += f', which {scale} or an earlier block_after would raise'
        return sentence

    def forget(self) -> None:
        """Let go of the last step, which may have failed."""
        self.selection = None
        self._exit_losses = None

    @torch.compiler.disable  # what it calls changes in every step
    def decide(self, candidates: HostCandidates) -> Decision:
        """Who stays."""
        self.pruner.discard()  # of a step that failed
        decision = self.pruner.select(candidates)
        self.selection = decision.selection if decision.looked else None
        return decision

    @torch.compiler.disable
    def narrow(
        self, decision: Decision, images: Tensor, data_samples: list | Tensor
    ) -> tuple[Tensor, list | Tensor]:
        """Images and labels of those that this process goes on with."""
        if decision.unchanged:
            return images, data_samples
        if decision.exchange is not None:
            self._check_layout(images, data_samples)
        return decision.take(images), select_samples(data_samples, decision)

    def exit_losses(
        self, vectors: Tensor, data_samples: list | Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(N,) of the scoring pass that has just run over images of (H, W), without gradient."""
        if self.exit is None:
            raise TypeError('no exit was asked for: let the criterion have exit_options')
        losses = self.exit.losses(vectors, data_samples, size).float()
        self._exit_losses = losses if self.exit.trained else None
        return losses.detach()

    @torch.compiler.disable
    def exit_training_loss(self) -> dict[str, Tensor]:
        """What an exit of its own learns from: its loss of the images that stay, by name.

        Where nothing was scored the loss is zero, so that every weight of a distributed run gets
        its gradient in every step.
        """
        if self.exit is None or not self.exit.trained:
            return {}
        losses, self._exit_losses = self._exit_losses, None
        if losses is None:
            return {'exit.loss_ce': sum(p.sum() for p in self.exit.parameters()) * 0}
        learns = self.selection.kept & losses.isfinite()
        return {'exit.loss_ce': torch.where(learns, losses, 0).sum() / learns.sum().clamp(min=1)}

    def _check_layout(self, images: Tensor, data_samples: list | Tensor) -> None:
        """Images and labels can only be handed on if they are laid out alike everywhere and always;
        asked of the other processes once."""
        ranks, layout = self.pruner.ranks, layout_of(images, data_samples)
        if self._layout is None:
            number = zlib.crc32(layout.encode())
            if len({*ranks.all_values((number,), images.device)}) > 1:
                raise ValueError(
                    "selection_scope='global' hands images and labels from rank to rank, which "
                    f'must be laid out alike on all of them; on rank {ranks.rank}: {layout}; '
                    f'another rank differs. {_ONE_SHAPE}'
                )
            self._layout = layout
        if layout != self._layout:
            raise ValueError(
                "selection_scope='global' takes images and labels of one layout in every "
                f'iteration; found {layout} on rank {ranks.rank} after {self._layout}. {_ONE_SHAPE}'
            )


class PFBMixin:
    """Makes the training step of any OpenMMLab model a blocked one.

    ``class MySegmentor(PFBMixin, AnySegmentor)`` takes one more argument, ``pfb``, a dict with the
    options of :class:`PartialForwardBlocking`. The host must have a ``backbone`` and
    ``loss(inputs, data_samples)``; what its heads tell of single images, which some criteria ask
    for, is known of the kinds of models in ``TASKS``. Everything but ``loss`` in training mode is
    the host's own.
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
            The host's losses, over the kept images only; and ``exit.loss_ce``, where the criterion
            has an exit of its own to train.

        Raises:
            ValueError: ``selection_scope='global'``, and images or labels of several layouts.
            TypeError: single_pass with stacked labels, which cannot be narrowed on the way.
        """
        pfb = self.pfb
        pfb.forget()
        if not self.training:
            return super().loss(inputs, data_samples)
        if not pfb.prepared:
            pfb.prepare(inputs)
        if not pfb.pruning:
            losses = super().loss(inputs, data_samples)
        elif pfb.strategy == 'single_pass':
            losses = self._single_pass_loss(inputs, data_samples)
        else:
            decision = pfb.decide(HostCandidates(self, pfb, inputs, data_samples))
            losses = super().loss(*pfb.narrow(decision, inputs, data_samples))
            # Only now: what the other processes kept has travelled during the forward pass.
            decision.commit()
        return losses if pfb.exit is None else {**losses, **pfb.exit_training_loss()}

    @torch.compiler.disable  # a compiled network would not call the hooks that cut it
    def _single_pass_loss(self, inputs: Tensor, data_samples: list) -> dict:
        if isinstance(data_samples, Tensor):
            raise TypeError(
                "strategy='single_pass' needs data_samples as a list, got a tensor; use "
                "strategy='two_pass'"
            )
        pfb = self.pfb
        # The heads read the list after the backbone has run: it is narrowed with the batch.
        narrowed = list(data_samples)
        decision: Decision | None = None

        def choose(vectors: Tensor) -> Tensor:
            nonlocal decision
            candidates = HostCandidates(self, pfb, inputs, data_samples, vectors)
            decision = pfb.decide(candidates)
            if not decision.unchanged:
                narrowed[:] = select_samples(data_samples, decision)
            return decision.selection.indices

        with nullcontext() if pfb.exit is None else pfb.exit.capture(), pfb.point.cut(choose):
            losses = super().loss(inputs, narrowed)
        decision.commit()
        return losses


def _inside(task: Task, block_after: str) -> str:
    """The name inside the encoder of ``'backbone.layer3'``."""
    room, _, name = str(block_after).partition('.')
    if room != task.encoder_name or not name:
        raise ValueError(
            f'block_after={block_after!r}: expected the dotted name of a module inside the '
            f"{task.encoder_name}, e.g. '{task.encoder_name}.layer3'"
        )
    return name


def _options(*callables: Callable) -> list[str]:
    """Names that their signatures know, each once."""
    parameters = [p for one in callables for p in inspect.signature(one).parameters.values()]
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != 'model']
    return list(dict.fromkeys(named))


# Those of 'rare' stand beside the criterion, as they did before there were others.
_OPTIONS = _options(PartialForwardBlocking, BatchPruner, Rare)
