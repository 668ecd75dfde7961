"""Exits: what tells the loss of each image of a model behind its shallow part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from ..blocking import BlockingPoint
from ..core.checks import check_integer


class Exit(nn.Module, ABC):
    """Gives each image a loss, by the features at the blocking point or right behind it.

    Args:
        point: where images are blocked.

    Attributes:
        trained (bool): whether it has weights of its own, which learn from :meth:`losses`.
        behind (bool): whether it reads a module that runs after the blocking point.
        compares_vectors (bool): whether it reads the vectors alone, and compares those of a batch:
            the larger that is, the more its losses tell.
    """

    trained = False
    behind = False
    compares_vectors = False

    def __init__(self, point: BlockingPoint) -> None:
        super().__init__()
        self.point = point

    @property
    def module(self) -> nn.Module:
        """The module inside the encoder whose output is read."""
        return self.point.module

    @abstractmethod
    def prepare(self, like: Tensor | None = None) -> None:
        """Look, before training, at what it is going to read, see :meth:`BlockingPoint.prepare`.

        Raises:
            ValueError: it cannot be read.
        """

    @abstractmethod
    def losses(self, vectors: Tensor, data_samples: list | Tensor, size: tuple[int, int]) -> Tensor:
        """Loss of each image of the pass that has just run.

        Args:
            vectors: (N, C) of :meth:`BlockingPoint.score`.
            data_samples: N, with labels.
            size: (H, W) of the images that the encoder was given.

        Returns:
            (N,) float32, with a graph down to the exit's own weights if it is trained.
        """

    def capture(self) -> AbstractContextManager[None]:
        """Remember what it needs, beside the vectors, of a forward pass of the encoder."""
        return nullcontext()

    def choose_pool(self, forward_flops: float | None, like: Tensor | None = None) -> None:
        """Make itself cheap, beside a forward pass of the whole model on the blank image.

        Args:
            forward_flops: floating-point operations of that pass; None if they are not known.
            like: see :meth:`BlockingPoint.prepare`.
        """

    @abstractmethod
    def flops(self, like: Tensor | None = None) -> float:
        """Floating-point operations of the exit for the blank image."""


def channels_at(point: BlockingPoint, in_channels: int | None) -> int:
    """How many channels an exit of its own, whose weights are made with the model, has to read.

    Args:
        point: where images are blocked.
        in_channels: as the user says; None finds out by a pass over a blank image.

    Raises:
        TypeError, ValueError: it is no number of channels, or cannot be found out.
    """
    if in_channels is None:
        try:
            point.prepare()
        except ValueError as error:
            raise ValueError(
                f'{error}. An exit of its own must know the number of channels behind '
                f'{point.path} when the model is built; name it, criterion='
                "dict(type='hard', exit='own', in_channels=...)"
            ) from error
        in_channels = point.num_channels
    check_integer('in_channels', in_channels, low=1)
    return in_channels
