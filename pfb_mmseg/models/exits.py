"""Early exits: they tell the loss of each image behind the shallow part, and may teach it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..blocking import BlockingPoint, count_flops, returned_by, scoring_mode
from ..core.ranks import Pending, Ranks

# Steps in which an exit with weights of its own learns from all images before it decides.
_WARM_UP = 10
_LEARNING_RATE = 1e-3
# Adam's, as everybody has them.
_BETAS = (0.9, 0.999)
_EPS = 1e-8


class ExitLosses(NamedTuple):
    """What an exit makes of a batch.

    Attributes:
        of_images: (N,) float32 loss of each image, without gradient; NaN where an image's features
            are not finite.
        training: entries for the dict of losses, such as ``exit.loss_ce``, whose gradient reaches
            the shallow part; empty where nothing is to be taught.
        lesson: what the exit learns from when the step is over; None if it has no weights.
    """

    of_images: Tensor
    training: dict[str, Tensor]
    lesson: Pending | None = None


class Exit(ABC):
    """Gives each image a loss, by what one module of the encoder returns.

    Args:
        point: where images are blocked.

    Attributes:
        name (str): for the log.
        ready (bool): whether its losses tell anything yet.
        behind (bool): whether it reads a module that runs after the blocking point.
        head_index (int | None): which auxiliary head of the model it is; None for none.
    """

    name: str
    ready = True
    behind = False
    head_index: int | None = None

    def __init__(self, point: BlockingPoint) -> None:
        self.point = point

    @property
    def module(self) -> nn.Module:
        """The module inside the encoder whose output is read."""
        return self.point.module

    @abstractmethod
    def prepare(self) -> None:
        """Look, before training and when the point is prepared, at what is going to be read.

        Raises:
            ValueError: it cannot be read.
        """

    @abstractmethod
    def losses(
        self, output: Any, samples: list | Tensor, size: tuple[int, int], weight: float
    ) -> ExitLosses:
        """Losses of the images of a pass.

        Args:
            output: what the module returned in it.
            samples: N data samples, or their labels in one tensor.
            size: (H, W) of the images that the encoder was given.
            weight: of the loss that teaches the shallow part; 0: nothing is taught.
        """

    @abstractmethod
    def logits(self, output: Any, size: tuple[int, int]) -> Tensor:
        """What the module returned for images of (H, W) -> the exit's logits."""

    def flops(self) -> float:
        """Floating-point operations of the exit for one blank image."""
        images = self.point.blank_images(2)  # one would be too few for BatchNorm on single pixels
        until = self.module if self.behind else None
        with scoring_mode(self.point.host, batch_statistics=False):
            with returned_by(self.module) as outputs:
                self.point.reach(lambda: self.point.encoder(images), until)
            size = tuple(images.shape[-2:])
            return count_flops(lambda: self.logits(outputs[-1][0], size)) / 2


def finite_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C, ...) with zeros in place of images that are not finite, since one NaN would
    reach all images through a normalisation; and (N,) bool, which images are."""
    finite = features.detach().isfinite().flatten(1).all(dim=1)
    return torch.where(finite.view(-1, *(1,) * (features.ndim - 1)), features, 0), finite


class OwnExit(Exit):
    """An exit with weights of its own, which are no part of the model.

    They learn from all images of every batch that is looked at, by Adam with a rate of 0.001 in
    float32, whatever the run's optimizer, precision and gradient clipping are. So the exit is in
    no optimizer of the run and its gradient in no norm. In a distributed run all processes hold the
    same weights, bit for bit.

    Args:
        point: where images are blocked.
        ranks: the processes that train together.
        seed: of the initial weights.
    """

    name = 'a small early exit'

    def __init__(self, point: BlockingPoint, ranks: Ranks, seed: int) -> None:
        super().__init__(point)
        self._ranks = ranks
        self._seed = seed
        self._learnt = 0
        self._state: Tensor | None = None  # of a run that goes on, before the weights are made
        self.layers: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """Features -> logits. Called when the channels at the blocking point are known."""

    @abstractmethod
    def features(self, output: Any, size: tuple[int, int]) -> Tensor:
        """What the module returned -> (N, C, ...), with its graph."""

    @abstractmethod
    def sums(self, logits: Tensor, samples: list | Tensor) -> tuple[Tensor, Tensor]:
        """(N,) summed loss of each image, and (N,) how many terms count in its mean."""

    def logits(self, output: Any, size: tuple[int, int]) -> Tensor:
        features = self.features(output, size).float()
        self._follow(features.device)
        return self.layers(features)

    def _follow(self, device: torch.device) -> None:
        """Go where the features are: the exit is no part of the model that is moved."""
        if self._moments.device != device:
            self.layers.to(device)
            self._moments = self._moments.to(device)

    @property
    def ready(self) -> bool:
        return self._learnt >= _WARM_UP

    def prepare(self) -> None:
        """Make the weights, or take those of the run that goes on."""
        if self.layers is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed % 2**63)
            self.layers = self.build()
        self.layers.float()
        num = parameters_to_vector(self.layers.parameters()).numel()
        self._moments = torch.zeros(2, num, dtype=torch.float32)
        self._follow(self.point.like.device)
        self._take_state()

    def losses(
        self, output: Any, samples: list | Tensor, size: tuple[int, int], weight: float
    ) -> ExitLosses:
        features, finite = finite_rows(self.features(output, size))
        features = features.float()
        teaches = weight > 0 and features.requires_grad
        inputs = features.detach().requires_grad_(teaches)
        self._follow(inputs.device)
        weights = [*self.layers.parameters()]
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            sums, counts = self.sums(self.layers(inputs), samples)
            mean = sums.sum() / counts.sum().clamp(min=1)
            wanted = [*weights, inputs] if teaches else weights
            gradients = torch.autograd.grad(mean, wanted)
        lesson = torch.cat([gradient.flatten() for gradient in gradients[: len(weights)]])
        losses = (sums / counts.clamp(min=1)).detach().masked_fill(~finite, torch.nan)
        training = {}
        if teaches:
            # The way back through the exit is gone already: this has the value of the loss, and
            # its gradient with respect to the features.
            taught = (features * gradients[-1]).sum()
            training['exit.loss_ce'] = weight * (taught - taught.detach() + mean.detach())
        return ExitLosses(losses, training, self._ranks.mean(lesson))

    @torch.no_grad()
    def learn(self, lesson: Pending) -> None:
        """A step of Adam. Torch's own would ask its counter of steps for a number."""
        gradient = lesson.wait()
        self._learnt += 1
        for moment, power, beta in zip(self._moments, (1, 2), _BETAS, strict=True):
            moment.lerp_(gradient**power, 1 - beta)
        first, second = (
            moment / (1 - beta**self._learnt)
            for moment, beta in zip(self._moments, _BETAS, strict=True)
        )
        steps = _LEARNING_RATE * first / (second.sqrt() + _EPS)
        weights = parameters_to_vector(self.layers.parameters())
        vector_to_parameters(weights - steps, self.layers.parameters())

    def pack(self) -> Tensor:
        """What a resumed run needs, as one tensor of integers: MMEngine broadcasts and averages the
        entries of a state_dict, and only leaves these as they are.

        Returns:
            (1 + 3 P,) int32: how many batches were learnt from; then the bits of the P weights, and
            of the first and the second moments of their gradients. (1,) before :meth:`prepare`.
        """
        if self.layers is None:
            return torch.zeros(1, dtype=torch.int32) if self._state is None else self._state
        weights = parameters_to_vector(self.layers.parameters()).detach()
        bits = torch.cat([weights, self._moments.flatten()]).view(torch.int32)
        return torch.cat([torch.full_like(bits[:1], self._learnt), bits])

    def unpack(self, state: Tensor) -> None:
        """Go on from :meth:`pack`; warn and start anew where that was an exit of another size."""
        self._state = state if len(state) > 1 else None
        if self.layers is not None:
            self._take_state()

    @torch.no_grad()
    def _take_state(self) -> None:
        state, self._state = self._state, None
        if state is None:
            return
        num = self._moments.shape[1]
        if len(state) != 1 + 3 * num:
            warnings.warn(
                f'the checkpoint has an early exit of {len(state) // 3} weights, this model one of '
                f'{num}: the exit starts anew',
                stacklevel=2,
            )
            return
        self._learnt = int(state[0])
        numbers = state[1:].clone().view(torch.float32).to(self._moments.device)
        self._moments.copy_(numbers[num:].view(2, num))
        vector_to_parameters(numbers[:num], self.layers.parameters())
