"""The blocked training step: PFBMixin, a filter in front of a model's ``loss``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..blocking import feature_tensors, returned_by, score_again_alike, scoring_mode, shrink
from ..core import Candidates, Decision
from ..core.checks import check_keys
from .exits import ExitLosses
from .pfb import PartialForwardBlocking
from .samples import select_samples, valid_shares

Losses = dict[str, Any]


class PFBMixin:
    """Makes the training step of any OpenMMLab model a blocked one.

    ``class MySegmentor(PFBMixin, AnySegmentor)`` takes one more argument, ``pfb``, a dict with the
    options of :class:`PartialForwardBlocking`. The host must have a ``backbone`` and
    ``loss(inputs, data_samples)``; what its heads tell of single images, which some criteria ask
    for, is known of the kinds of models in ``TASKS``. Everything but ``loss`` in training mode is
    the host's own.
    """

    def __init__(self, *args: Any, pfb: dict, **kwargs: Any) -> None:
        _, *options = inspect.signature(PartialForwardBlocking).parameters  # but the model
        check_keys('pfb', pfb, options)
        super().__init__(*args, **kwargs)
        self.pfb = PartialForwardBlocking(self, **pfb)

    def loss(self, inputs: Tensor, data_samples: list | Tensor) -> Losses:
        """Losses of a training step (Algorithm 1, lines 4–11).

        Args:
            inputs: (N, C, H, W).
            data_samples: N data samples, or labels stacked in one tensor (N, ...).

        Returns:
            The host's losses, over the images that stay only; and ``exit.loss_*``, where the early
            exit's loss over all images trains the shallow part.

        Raises:
            TypeError, ValueError: what the model, its labels or a criterion cannot do, see
                :meth:`PartialForwardBlocking.begin_step`.
        """
        pfb, plain_loss = self.pfb, super().loss
        if not (self.training and pfb.begin_step(inputs, data_samples)):
            return plain_loss(inputs, data_samples)
        step = BlockedStep(self, inputs, data_samples, plain_loss)
        if step.keeps_all:
            losses = plain_loss(inputs, data_samples)
        elif pfb.strategy == 'single_pass':
            losses = step.cut()
        else:
            losses = plain_loss(*step.choose())
        return step.finish(losses)

    def _auxiliary_head_forward_train(self, inputs: Any, data_samples: list) -> Losses:
        """MMSegmentation's losses of auxiliary heads, without that of a head that has taught all
        images of this step as the early exit."""
        taught = self.pfb.taught_head
        if taught is None:
            return super()._auxiliary_head_forward_train(inputs, data_samples)
        if not isinstance(self.auxiliary_head, nn.ModuleList):
            return {}
        losses = super()._auxiliary_head_forward_train(inputs, data_samples)
        return {k: v for k, v in losses.items() if not k.startswith(f'aux_{taught}.')}


class BlockedStep(Candidates):
    """One training step, as its images see it::

        images, samples [N] -> the shallow part -> vectors [N] -> the early exit -> losses [N]
                                                      └─────> criterion <──────────────┘
        images, samples [K] <- the choice <───────────────────────┘
        -> the deep part and the heads -> the model's losses; and the exit's, over all N images

    What the criterion does not ask for is not computed.

    Args:
        model: the host, with ``pfb``.
        images: (N, C, H, W).
        samples: N data samples, or labels in one tensor.
        plain_loss: the host's, by which the images reach the shallow part.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        samples: list | Tensor,
        plain_loss: Callable[..., Losses],
    ) -> None:
        super().__init__(len(images), images.device)
        self.images = images
        self.samples = samples
        self._model = model
        self._pfb: PartialForwardBlocking = model.pfb
        self._plain_loss = plain_loss
        self._with_gradient = torch.is_grad_enabled()
        self._vectors: Tensor | None = None
        self._at_exit: ExitLosses | None = None
        self._decision: Decision | None = None

    @property
    def ready(self) -> bool:
        return self._pfb.knows_losses

    @property
    @torch.compiler.disable
    def keeps_all(self) -> bool:
        """Whether every image stays in this step by their number alone: then none is looked at."""
        if self._pfb.trial or not self._pfb.pruner.keeps_all(self):
            return False
        self._decide()
        return True

    @torch.compiler.disable  # what it calls changes in every step
    def choose(self) -> tuple[Tensor, list | Tensor]:
        """Two passes: all images run up to the blocking point, and the chosen ones start anew.
        Returns the images and samples to train on."""
        if self._pfb.exit_loss_weight > 0:  # an exit of its own learns before it teaches
            self._look(gradient=self._weight > 0)
        decision = self._decide()
        if decision.unchanged:
            return self.images, self.samples
        return decision.take(self.images), select_samples(self.samples, decision)

    @torch.compiler.disable  # a compiled network would not call the hooks that cut it
    def cut(self) -> Losses:
        """One pass: behind the blocking point only the chosen images go on. Returns the host's
        losses, or raises RunsTwice if there is more than one pass."""
        # The heads read the list after the backbone has run: it is narrowed with the batch.
        narrowed = list(self.samples)
        with self._outputs_at_exit() as at_exit:

            def choose(output: Any) -> Tensor:
                self._read(output, at_exit, tuple(self.images.shape[-2:]))
                decision = self._decide()
                if not decision.unchanged:
                    narrowed[:] = select_samples(self.samples, decision)
                return decision.selection.indices

            with self._pfb.single_pass.cut(choose):
                return self._plain_loss(self.images, narrowed)

    @torch.compiler.disable
    def finish(self, losses: Losses) -> Losses:
        """Add what the early exit teaches, and let criterion and exit learn from the step."""
        if self._at_exit is None:
            self._pfb.end_step(self._decision, None)
            return losses
        self._pfb.end_step(self._decision, self._at_exit.lesson)
        return {**losses, **self._at_exit.training}

    def features(self) -> Tensor:
        if self._vectors is None:
            self._look()
        return self._vectors

    def exit_losses(self) -> Tensor:
        if self._pfb.exit is None:
            raise TypeError("there is no early exit: set the criterion's scoring_pass to 'exit'")
        if self._at_exit is None:
            self._look()
        return self._at_exit.of_images

    def losses(self) -> Tensor:
        with scoring_mode(self._model, batch_statistics=False):
            return self._pfb.task.losses(self.images, self.samples)

    def classifier_gradients(self) -> Tensor:
        with scoring_mode(self._model, batch_statistics=False):
            return self._pfb.task.classifier_gradients(self.images, self.samples)

    @property
    def _weight(self) -> float:
        """Of the exit's loss in this step."""
        exit = self._pfb.exit
        return self._pfb.exit_loss_weight if exit is not None and exit.ready else 0.0

    def _decide(self) -> Decision:
        pfb = self._pfb
        self._decision = pfb.pruner.select(self, trial=pfb.trial)
        return self._decision

    def _look(self, gradient: bool = False) -> None:
        """The scoring pass: the training pass over all images, left at the blocking point; with a
        gradient if the exit's loss is to go back through it."""
        pfb = self._pfb
        sizes: list[tuple[int, int]] = []

        def see_images(encoder: nn.Module, args: tuple) -> tuple:
            images, *others = args
            if pfb.score_scale != 1:
                images = shrink(images, pfb.score_scale)
            sizes.append(tuple(images.shape[-2:]))
            return (images, *others)

        handle = pfb.point.encoder.register_forward_pre_hook(see_images)
        try:
            with scoring_mode(self._model, gradient=gradient), self._outputs_at_exit() as at_exit:
                until = pfb.exit.module if pfb.exit is not None and pfb.exit.behind else None
                output = pfb.point.reach(lambda: self._plain_loss(self.images, self.samples), until)
        finally:
            handle.remove()
        if gradient:
            score_again_alike(self._model, feature_tensors(at_exit[-1][0]))
        self._read(output, at_exit, sizes[0])

    def _outputs_at_exit(self) -> AbstractContextManager[list]:
        exit = self._pfb.exit
        return nullcontext([]) if exit is None else returned_by(exit.module)

    def _read(self, output: Any, at_exit: list, size: tuple[int, int]) -> None:
        """What point and exit make of a pass over images of (H, W), by the output of the blocking
        point and those that the exit reads, see :func:`returned_by`."""
        pfb, rows = self._pfb, len(feature_tensors(output)[0])
        if rows != self.num:
            raise ValueError(
                f'{pfb.point.path} has {rows} rows for {self.num} samples: the model makes other '
                'images of them before its encoder (extract_feat), so that none can be told apart '
                "there; use criterion='random' with exit_loss_weight=0 and strategy='two_pass'"
            )
        valid = valid_shares(self.samples, tuple(self.images.shape[-2:]))
        self._vectors = pfb.point.vectors(output, valid, size).detach()
        if pfb.exit is None:
            return
        output, leaves_graph = at_exit[-1]
        if self._weight > 0 and self._with_gradient and not leaves_graph:
            raise ValueError(
                f'exit_loss_weight={self._weight:g} cannot train what leads to {pfb.point.path}, '
                'which runs without gradient: activation checkpointing of the whole backbone '
                'is reentrant. Checkpoint its stages one by one, activation_checkpointing='
                "['backbone.layer1', ...], or set exit_loss_weight=0"
            )
        self._at_exit = pfb.exit.losses(output, self.samples, size, self._weight)
        pfb.taught_head = pfb.exit.head_index if self._at_exit.training else None
