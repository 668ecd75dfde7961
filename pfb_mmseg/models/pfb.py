"""PartialForwardBlocking: where, how many and which images of a model are blocked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..blocking import BlockingPoint, SinglePass, StepCost, step_cost
from ..blocking.devices import random_state_kept
from ..core import AdaptiveDensityEstimator, BatchPruner, Decision, Selection
from ..core.checks import check_choice, check_number, check_sizes
from ..core.criterion import CriterionOption
from ..core.ranks import Pending, ProcessGroupOption, Ranks
from .exits import Exit, OwnExit
from .task import Task, task_of


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
        single_pass (SinglePass): what cuts a pass under that strategy.
        cost (StepCost | None): of a step; None before :meth:`prepare`, and where it is not known.

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
            check_choice('strategy', strategy, ('two_pass', 'single_pass'))
        if exit is not None:
            check_choice('exit', exit, ('auxiliary', 'own'))
        if exit_loss_weight is not None:
            check_number('exit_loss_weight', exit_loss_weight, 0, float('inf'), open_high=True)
        if input_shape is not None:
            check_sizes('input_shape', input_shape, num=3)
        self.task = task = task_of(model)
        name = task.default_stage() if block_after is None else _inside(task, block_after)
        self.point = BlockingPoint(model, name, input_shape, encoder_name=task.encoder_name)
        self.single_pass = SinglePass(self.point)
        ranks = Ranks(process_group)
        self.pruner = BatchPruner(
            prune_ratio,
            criterion,
            min_keep=task.min_keep(ranks) if min_keep is None else min_keep,
            seed=seed,
            process_group=ranks,
        )
        self.quota = self.pruner.quota
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
        self._strategy_is_open = strategy is None
        self.strategy = strategy or ('single_pass' if self.exit_loss_weight else 'two_pass')
        self._check_options_of_single_pass()
        self.pruning = True
        self.selections: list[Selection] = []
        self.num_images = 0
        self.taught_head: int | None = None
        self.trial = False
        self.prepared = False
        self._is_driven = False
        self.cost: StepCost | None = None

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        """Of the density that decides; None if none does."""
        return self.pruner.estimator if self.quota.prune_ratio > 0 else None

    @property
    def knows_losses(self) -> bool:
        """Whether the exit's losses can be compared, if the criterion asks for them."""
        return self.pruner.criterion.scoring_pass != 'exit' or self.exit.ready

    @property
    def ready(self) -> bool:
        """Whether images can be compared yet; until then all stay."""
        return self.pruner.ready and self.knows_losses

    @property
    def selection(self) -> Selection | None:
        """Of the last call of ``loss``; None if nothing was looked at."""
        return self.selections[-1] if self.selections else None

    def _check_options_of_single_pass(self) -> None:
        if self.strategy != 'single_pass':
            return
        reason = None
        if self.task.heads_read_images:
            model = type(self.task.model).__name__
            reason = f'narrows what the encoder returns; the heads of {model} read its images too'
        elif self.pruner.criterion.scoring_pass == 'whole':
            criterion = type(self.pruner.criterion).__name__
            reason = f'cuts a forward pass; {criterion} needs a whole one before it chooses'
        elif self.score_scale != 1:
            reason = 'has no scoring pass of its own for score_scale'
        if reason is not None:
            self.give_up_single_pass(
                ValueError(f"strategy='single_pass' {reason}; use strategy='two_pass'")
            )

    def give_up_single_pass(self, error: Exception) -> None:
        """Go over to ``'two_pass'`` where the user left the strategy open, else raise the error."""
        if not self._strategy_is_open:
            raise error
        self.strategy = 'two_pass'

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
            self.exit.prepare()
        if self.strategy == 'single_pass':
            try:
                self._check_single_pass()
            except ValueError as error:
                self.give_up_single_pass(error)
        if self.score_scale != 1:
            self.point.check_scale(self.score_scale)
        self.pruner.criterion.prepare(self.point.num_channels)
        self.cost = step_cost(self.point.host, self.point, self.task.forward)
        if self.cost is not None and self.exit is not None:
            self.cost = self.cost._replace(exit=self.exit.flops())
        self.prepared = True

    def _check_single_pass(self) -> None:
        if self.exit is not None and self.exit.behind:
            raise ValueError(
                'the auxiliary head reads what comes behind the blocking point, where '
                "strategy='single_pass' has chosen already; use exit='own' or strategy='two_pass'"
            )
        self.single_pass.check()

    def start_run(self, full_batch: int | None) -> None:
        """Before the first iteration of a run, with the images per process in a full batch; None if
        that is not known."""
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
    def begin_step(self, images: Tensor, samples: list | Tensor) -> bool:
        """Before a call of ``loss`` in training mode. Returns whether it is to be blocked.

        Raises:
            TypeError: the labels are one tensor, which ``'single_pass'`` cannot narrow on the way.
            ValueError: see :meth:`prepare`.
        """
        if not self._is_driven:
            self.selections.clear()
            self.num_images = 0
        self.num_images += len(images)
        self.taught_head = None
        self.pruner.discard()  # of a step that failed
        if not self.prepared:
            self.prepare(images)
        if self.pruning and self.strategy == 'single_pass' and isinstance(samples, Tensor):
            self.give_up_single_pass(
                TypeError(
                    "strategy='single_pass' needs data_samples as a list, got a tensor; use "
                    "strategy='two_pass'"
                )
            )
        return self.pruning

    def end_step(self, decision: Decision, lesson: Pending | None) -> None:
        """After the forward pass of the images that stay: what criterion and exit learn from has
        travelled between the processes meanwhile."""
        if self.trial:
            return
        decision.commit()
        if lesson is not None:
            self.exit.learn(lesson)
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
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])

    def get_extra_state(self) -> Tensor:
        """Of an exit with weights of its own, see :meth:`OwnExit.pack`."""
        own = isinstance(self.exit, OwnExit)
        return self.exit.pack() if own else torch.zeros(1, dtype=torch.int32)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # The checkpoint of a model without PFB has none.
        state_dict.setdefault(f'{prefix}_extra_state', self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_extra_state(self, state: Tensor) -> None:
        if isinstance(self.exit, OwnExit):
            self.exit.unpack(state)


def _inside(task: Task, block_after: str) -> str:
    """The name inside the encoder of ``'backbone.layer3'``."""
    encoder, _, name = str(block_after).partition('.')
    if encoder != task.encoder_name or not name:
        raise ValueError(
            f'block_after={block_after!r}: expected the dotted name of a module inside the '
            f"{task.encoder_name}, e.g. '{task.encoder_name}.layer3'"
        )
    return name
