"""PartialForwardBlocking: where, how many and which images of a model are blocked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..blocking import BlockingPoint, StepCost, scoring_mode, step_cost
from ..blocking.devices import random_state_kept
from ..core import (
    AdaptiveDensityEstimator,
    BatchPruner,
    Candidates,
    Decision,
    KeepQuota,
    Selection,
)
from ..core.checks import check_choice, check_number, check_sizes
from ..core.criterion import CriterionOption
from ..core.ranks import ProcessGroupOption, Ranks
from .exits import Exit
from .task import Task, task_of

STRATEGIES = ('two_pass', 'single_pass')
EXITS = ('auxiliary', 'own')
# Share of a full step above which scoring is worth making cheaper: half of what p = 0.3 may save.
_DEAR = 0.15


class ModelCandidates(Candidates):
    """The images of a batch, of which the losses of a whole forward pass can be told.

    Args:
        task: of the model.
        images: (N, C, H, W).
        samples: N data samples, or labels in one tensor.
    """

    def __init__(self, task: Task, images: Tensor, samples: list | Tensor) -> None:
        super().__init__(len(images), images.device)
        self.images = images
        self.samples = samples
        self._task = task

    def losses(self) -> Tensor:
        with scoring_mode(self._task.model, batch_statistics=False):
            return self._task.losses(self.images, self.samples)

    def classifier_gradients(self) -> Tensor:
        with scoring_mode(self._task.model, batch_statistics=False):
            return self._task.classifier_gradients(self.images, self.samples)


class PartialForwardBlocking(nn.Module):
    """What a model needs to block images. Holds the options and the state.

    Args:
        model: the host; only its encoder and heads are looked at.
        prune_ratio: p of Eq. 1, in [0, 1): share of each batch that is not trained on.
        criterion: which images stay, see :class:`BatchPruner`. ``'rare'`` is the paper's,
            ``'hard'`` keeps the images of highest loss at the early exit.
        exit_loss_weight: at least 0: weight by which the early exit's loss over all images of a
            batch, those that stop included, trains the shallow part. 0 is the paper; None is 1 for
            ``'hard'`` and 0 for the other criteria.
        exit: ``'auxiliary'`` takes the model's auxiliary head that reads the blocked stage as early
            exit, ``'own'`` a small head of its own; None: the first where there is one.
        strategy: ``'two_pass'`` runs all images up to the blocking point and then trains on those
            that stay alone, for any backbone; ``'single_pass'`` cuts one pass there, for backbones
            that are a chain. None: the cheaper one that fits, ``'single_pass'`` only where the
            early exit's loss trains the shallow part.
        block_after: dotted name of a module, ``'backbone.layer3'``; None takes what the paper does
            for a model of this kind: in a segmentor the stage that the auxiliary head reads
            (supplement, B.2), see :func:`default_stage`, in a classifier :func:`early_stage`.
        min_keep: the least number of images kept per process; None is 1, or 2 where a head
            normalises single pixels with BatchNorm, which cannot be trained on one image.
        score_scale: two_pass only, in (0, 1]: relative size of the images in the scoring pass.
        input_shape: (C, H, W) of the blank image with which the blocking point is checked before
            training; None finds one, see :class:`BlockingPoint`.
        seed: the draws of iteration t are a function of (seed, t) alone.
        process_group: of the processes that have images of their own, where others share them
            (tensor or sequence parallel); None: all. In a config a function that returns it, or
            its dotted path, see :class:`Ranks`.

    Attributes:
        pruning (bool): whether steps are blocked. True without PFBHook.
        selections (list[Selection]): of the current iteration, one for each call of ``loss`` in
            which images were looked at.
        num_images (int): of the current iteration, those that ``loss`` was given in training mode.
        exit (Exit | None): what tells the losses at the blocking point; None if nobody asks.
        taught_head (int | None): the auxiliary head that has taught all images of this step.
        trial (bool): whether a step is only being tried, see :meth:`trying`.
        task (Task): the host's kind, and what its heads tell.

    Raises:
        TypeError, ValueError: an option is misspelt or outside its range, or the model has no such
            module. What takes a forward pass to find out is found in :meth:`prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prune_ratio: float = 0.3,
        criterion: CriterionOption = 'rare',
        exit_loss_weight: float | None = None,
        exit: str | None = None,
        strategy: str | None = None,
        block_after: str | None = None,
        min_keep: int | None = None,
        score_scale: float = 1.0,
        input_shape: tuple[int, int, int] | None = None,
        seed: int = 0,
        process_group: ProcessGroupOption = None,
    ) -> None:
        super().__init__()
        check_number('score_scale', score_scale, 0, 1, open_low=True)
        if strategy is not None:
            check_choice('strategy', strategy, STRATEGIES)
        if exit is not None:
            check_choice('exit', exit, EXITS)
        if exit_loss_weight is not None:
            check_number('exit_loss_weight', exit_loss_weight, 0, float('inf'), open_high=True)
        if input_shape is not None:
            check_sizes('input_shape', input_shape, num=3)
        self.task = task = task_of(model)
        name = task.default_stage() if block_after is None else _inside(task, block_after)
        self.point = BlockingPoint(
            model, name, input_shape, encoder_name=task.encoder_name, blank_sizes=task.blank_sizes
        )
        ranks = Ranks(process_group)
        self.pruner = BatchPruner(
            prune_ratio,
            criterion,
            min_keep=task.min_keep(ranks) if min_keep is None else min_keep,
            seed=seed,
            process_group=ranks,
        )
        self.score_scale = score_scale
        chosen = self.pruner.criterion
        self.exit_loss_weight = float(
            chosen.exit_loss_weight if exit_loss_weight is None else exit_loss_weight
        )
        self.exit: Exit | None = None
        if chosen.scoring_pass == 'exit' or self.exit_loss_weight:
            self.exit = task.build_exit(self.point, ranks, exit, seed)
        elif exit is not None:
            raise ValueError(
                f'exit={exit!r}: criterion={criterion!r} with exit_loss_weight=0 has no early '
                "exit; leave exit out, set exit_loss_weight=1 or use criterion='hard'"
            )
        self.strategy = self._check_strategy(strategy)
        self._strategy_is_open = strategy is None and self.strategy == 'single_pass'
        self.pruning = True
        self.selections: list[Selection] = []
        self.num_images = 0
        self.taught_head: int | None = None
        self.trial = False
        self.prepared = False
        self._is_driven = False
        self._cost: StepCost | None = None

    @property
    def quota(self) -> KeepQuota:
        return self.pruner.quota

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        """Of the density that decides; None if none does."""
        return self.pruner.estimator if self.quota.prune_ratio > 0 else None

    @property
    def ready(self) -> bool:
        """Whether images can be compared yet; until then all stay."""
        waits = self.pruner.criterion.scoring_pass == 'exit' and not self.exit.ready
        return self.pruner.ready and not waits

    @property
    def selection(self) -> Selection | None:
        """Of the last call of ``loss``; None if nothing was looked at."""
        return self.selections[-1] if self.selections else None

    def _check_strategy(self, strategy: str | None) -> str:
        """The one that is asked for; where none is, the one to try first."""
        scoring = self.pruner.criterion.scoring_pass
        scaled = self.score_scale != 1
        if strategy is None:
            fits = not (self.task.heads_read_images or scoring == 'whole' or scaled)
            return 'single_pass' if self.exit_loss_weight and fits else 'two_pass'
        if strategy == 'two_pass':
            return strategy
        if self.task.heads_read_images:
            raise ValueError(
                "strategy='single_pass' narrows what the encoder returns, but the heads of "
                f"{type(self.task.model).__name__} read its images too; use strategy='two_pass'"
            )
        if scoring == 'whole':
            raise ValueError(
                f'criterion={type(self.pruner.criterion).__name__} needs a forward pass of the '
                "whole network before it chooses, so there is none to cut; use strategy='two_pass'"
            )
        if scaled:
            raise ValueError(
                "score_scale is of a separate scoring pass; strategy='single_pass' has none. Leave "
                "it out or use strategy='two_pass'"
            )
        return strategy

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
        if self.exit is not None:
            self.exit.prepare(like)
        if self.strategy == 'single_pass':
            try:
                self._check_single_pass(like)
            except ValueError:
                if not self._strategy_is_open:
                    raise
                self.strategy = 'two_pass'
        if self.score_scale != 1:
            self.point.check_scale(self.score_scale, like)
        self.pruner.criterion.prepare(self.point.num_channels)
        if self.pruner.criterion.scoring_pass == 'whole':
            self._check_whole_pass(like)
        host = self.point.host
        self._cost = step_cost(host, self.point, self.task.forward, like)
        if self._cost is not None and self.exit is not None:
            self._cost = self._cost._replace(exit=self.exit.flops(like))
        self.prepared = True

    def _check_whole_pass(self, like: Tensor | None) -> None:
        """Refuse a criterion that asks the heads for what they cannot tell."""
        images = self.point.blank_images(2, like)
        samples = self.task.blank_samples(images)
        if samples is not None:
            with self.trying():
                self.pruner.criterion.observe(ModelCandidates(self.task, images, samples))

    def _check_single_pass(self, like: Tensor | None) -> None:
        if self.exit is not None and self.exit.behind:
            raise ValueError(
                'the auxiliary head reads what comes behind the blocking point, where '
                "strategy='single_pass' has chosen already; use exit='own' or strategy='two_pass'"
            )
        self.point.check_cut(like)

    def describe(self) -> str:
        """What it does to its host, and what that costs, for the log."""
        ratio, criterion, cost = self.quota.prune_ratio, self.pruner.criterion, self._cost
        taught = self.exit_loss_weight > 0
        sentence = (
            f'PFB blocks {ratio:.0%} of the images behind {self.point.path} '
            f'({self.strategy}) and keeps {criterion.describe()}'
        )
        if taught:
            sentence += (
                f'; the loss of {self.exit.describe()} over all images trains the part in front '
                f'with weight {self.exit_loss_weight:g}'
            )
        if cost is None:
            return sentence
        sentence += f'. {cost.share_behind:.0%} of the forward pass is still to come there'
        if self.strategy == 'single_pass':
            saved = ratio * cost.share_behind
            return f'{sentence}; about {saved:.0%} of a step is saved by operations'
        scoring = cost.scoring(criterion.scoring_pass, self.score_scale, taught)
        if scoring == 0:
            return f'{sentence}; no image is scored, so that about {ratio:.0%} of a step is saved'
        sentence += (
            f'; looking at all images costs {scoring:.1%} of a full step by operations, so that '
            f'about {max(ratio - scoring, 0):.0%} of a step is saved'
        )
        if criterion.scoring_pass != 'whole' and scoring > _DEAR:
            scale = 'score_scale=0.5' if self.score_scale > 0.5 else 'a smaller score_scale'
            sentence += f', which {scale} or an earlier block_after would raise'
        return sentence

    def start_run(self, full_batch: int | None) -> None:
        """Before the first iteration of a run.

        Args:
            full_batch: images per process in a full batch; None if that is not known.
        """
        if full_batch is not None:  # the first batch of a run may be a short one
            self.pruner.full_size = full_batch

    def start_iteration(self, blocked: bool, num_proposed: int | None = None) -> None:
        """Before each iteration of a run that somebody drives, such as PFBHook.

        Args:
            blocked: whether images are to be left out.
            num_proposed: batch size before PFBBatchSampler left images out; None: it did not.
        """
        self._is_driven = True
        self.pruning = blocked
        self.selections.clear()
        self.num_images = 0
        self.pruner.num_proposed = num_proposed

    @torch.compiler.disable
    def begin_step(self, images: Tensor) -> bool:
        """Before a call of ``loss`` in training mode. Returns whether it is to be blocked."""
        if not self._is_driven:
            self.selections.clear()
            self.num_images = 0
        self.num_images += len(images)
        self.taught_head = None
        self.pruner.discard()  # of a step that failed
        if self.exit is not None:
            self.exit.discard()
        if not self.prepared:
            self.prepare(images)
        return self.pruning

    def end_step(self, decision: Decision) -> None:
        """After the forward pass of the images that stay: what was kept has travelled between the
        processes meanwhile, and is learnt from."""
        if self.trial:
            return
        decision.commit()
        if self.exit is not None:
            self.exit.commit()
        if decision.looked:
            self.selections.append(decision.selection)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Within it, steps of the host are blocked, keep the first half of the images and leave no
        trace in model, PFB and random generators. Without gradient.

        Raises:
            ValueError: of the steps, where they cannot be blocked.
        """
        model = self.point.host
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        training, pruning = model.training, self.pruning
        device = next(model.parameters()).device
        self.trial = self.pruning = True
        model.train()
        try:
            with random_state_kept(device), torch.no_grad():
                yield
        finally:
            model.train(training)
            self.trial, self.pruning = False, pruning
            self.taught_head = None
            if self.exit is not None:
                self.exit.discard()
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])

    def use_two_passes(self) -> bool:
        """Go over to ``'two_pass'``, if the user left the strategy open. Returns whether it did."""
        changes = self._strategy_is_open and self.strategy == 'single_pass'
        if changes:
            self.strategy = 'two_pass'
        return changes

    def get_extra_state(self) -> Tensor:
        """Of the exit, see :meth:`Exit.pack`."""
        return torch.zeros(1, dtype=torch.int32) if self.exit is None else self.exit.pack()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # The checkpoint of a model without PFB has none.
        state_dict.setdefault(f'{prefix}_extra_state', self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_extra_state(self, state: Tensor) -> None:
        if self.exit is not None:
            self.exit.unpack(state)


def option_names() -> list[str]:
    """Of the options of ``model.pfb``."""
    return [
        name for name in inspect.signature(PartialForwardBlocking).parameters if name != 'model'
    ]


def _inside(task: Task, block_after: str) -> str:
    """The name inside the encoder of ``'backbone.layer3'``."""
    encoder, _, name = str(block_after).partition('.')
    if encoder != task.encoder_name or not name:
        raise ValueError(
            f'block_after={block_after!r}: expected the dotted name of a module inside the '
            f"{task.encoder_name}, e.g. '{task.encoder_name}.layer3'"
        )
    return name
