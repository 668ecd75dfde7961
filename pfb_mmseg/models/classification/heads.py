"""What MMPretrain's heads can be asked: the loss of each image, of which they give the mean.

All heads of single images hand their scores and labels to ``loss_module``, whatever the labels look
like: classes, shares of classes after Mixup and CutMix, several classes an image. What is read here
is what goes into that module, so that no head and no kind of label needs a line of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class LossCall(NamedTuple):
    """What a head's loss function was given: ``function(scores, *labels, **options)``."""

    scores: Tensor
    labels: tuple
    options: dict[str, Any]


def loss_function(model: nn.Module) -> nn.Module:
    """The function of a classifier's head that gives each image its loss.

    ValueError if it has none, as heads of several tasks, or one that compares the images of a batch
    or counts their classes over the run.
    """
    head = getattr(model, 'head', None)
    function = getattr(head, 'loss_module', None)
    name = f'{type(head).__name__} of {type(model).__name__}'
    if not isinstance(function, nn.Module):
        raise ValueError(
            f'{name} has no loss_module that gives single images a loss; use a criterion that does '
            "without, such as 'rare'"
        )
    options = inspect.signature(function.forward).parameters
    stateful = next(function.named_buffers(), None)
    if 'reduction_override' not in options or stateful is not None:
        why = 'gives only that of a batch' if stateful is None else f'keeps {stateful[0]} over them'
        raise ValueError(
            f'images are compared by their losses, of which {type(function).__name__} in {name} '
            f"{why}; use CrossEntropyLoss, or a criterion that does without, such as 'rare'"
        )
    return function


def image_losses(function: nn.Module, call: LossCall) -> Tensor:
    """(N,) float32, what a loss function, given this in a training step, makes of each image; of
    several classes the sum; ValueError if there is no value for each. The head's loss is the mean.
    """
    options = {**call.options, 'reduction_override': 'none'}
    values = function.forward(call.scores.float(), *call.labels, **options)
    if values.shape[:1] != call.scores.shape[:1]:
        raise ValueError(
            f'images are compared by their losses, but {type(function).__name__} gives none for '
            "each; use CrossEntropyLoss, or a criterion that does without, such as 'rare'"
        )
    return values if values.ndim == 1 else values.flatten(1).sum(dim=1)


def loss_calls(model: nn.Module, images: Tensor, data_samples: list) -> list[LossCall]:
    """What the head's loss function would be given in a training step on these images."""
    calls: list[LossCall] = []

    def remember(function: nn.Module, args: tuple, options: dict) -> None:
        calls.append(LossCall(args[0], args[1:], options))

    handle = loss_function(model).register_forward_pre_hook(remember, with_kwargs=True)
    try:
        model.head.loss(model.extract_feat(images), data_samples)
    finally:
        handle.remove()
    return calls


@contextmanager
def linear_layers(head: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into the linear layers of a head in a forward pass, and what comes out."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        for layer in head.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
