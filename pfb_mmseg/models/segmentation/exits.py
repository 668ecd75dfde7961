"""Exits of segmentors: label maps are compared with what a head makes of a feature map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ...blocking import (
    BlockingPoint,
    count_flops,
    find_module,
    output_stages,
    scoring_mode,
    stage_names,
)
from ...core.checks import check_choice, check_integer, check_number
from ..exits import Exit, channels_at
from .heads import balanced_mean, final_head, label_maps, nearest, proxy_losses

KINDS = ('auxiliary', 'own')
# Of the operations of a training step on all images, taken as three forward passes.
_SHARE = 0.01
_MAX_POOL = 8
_OWN = "criterion=dict(type='hard', exit='own')"


class MapExit(Exit):
    """Reads the feature map that one module of the encoder returns.

    Args:
        point: where images are blocked.
        pool: side of the squares of features that are averaged before the exit reads them; None
            chooses, see :meth:`choose_pool`.
        class_balance: see :func:`balanced_mean`, whose exponent it is.
    """

    def __init__(self, point: BlockingPoint, pool: int | None, class_balance: float) -> None:
        super().__init__(point)
        if pool is not None:
            check_integer('pool', pool, low=1)
        check_number('class_balance', class_balance, 0, 1)
        self.pool = pool
        self.class_balance = class_balance
        self._channel_dim = 1
        self._output: Any = None

    @abstractmethod
    def map_losses(self, maps: Tensor, data_samples: list | Tensor) -> Tensor:
        """(N, C, h, w) features -> (N,) float32 loss of each image."""

    def choose_pool(self, forward_flops: float | None, like: Tensor | None = None) -> None:
        """Set ``pool`` if the user did not: to 1 if the operations are not known."""
        if self.pool is None:
            self.pool = 1
            while self.pool < _MAX_POOL and forward_flops is not None:
                if self.flops(like) <= _SHARE * 3 * forward_flops:
                    break
                self.pool *= 2

    def flops(self, like: Tensor | None = None) -> float:
        image = self.point.blank_images(1, like)
        with scoring_mode(self.point.encoder, batch_statistics=False), self.capture():
            vectors = self.point.score(image, self.module if self.behind else None)
        labels = torch.zeros(1, 1, *image.shape[-2:], dtype=torch.int64, device=image.device)
        with torch.no_grad():
            return count_flops(lambda: self.losses(vectors, labels, tuple(image.shape[-2:])))

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Remember what the module returns in a forward pass of the encoder."""

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            self._output = output

        handle = self.module.register_forward_hook(remember)
        try:
            yield
        finally:
            handle.remove()

    def losses(self, vectors: Tensor, data_samples: list | Tensor, size: tuple[int, int]) -> Tensor:
        """(N,) loss of each image whose feature map was captured last, see :class:`Exit`."""
        output, self._output = self._output, None
        maps = as_maps(output, self._channel_dim, size).detach()
        if self.pool > 1:
            maps = F.avg_pool2d(maps, self.pool, ceil_mode=True, count_include_pad=False)
        return self.map_losses(maps, data_samples)


class AuxiliaryExit(MapExit):
    """The model's own auxiliary head, as it stands; trained with the model as ever.

    Args:
        point: where images are blocked.
        index: which of the auxiliary heads.
        batch_statistics: see :func:`scoring_mode`.
        pool, class_balance: see :class:`MapExit`.
    """

    def __init__(
        self,
        point: BlockingPoint,
        index: int,
        batch_statistics: bool,
        pool: int | None,
        class_balance: float,
    ) -> None:
        super().__init__(point, pool, class_balance)
        self.index = index
        self.batch_statistics = batch_statistics
        self._path: list[str] = []

    @property
    def head(self) -> BaseDecodeHead:
        """The head, with whatever is wrapped around it."""
        return auxiliary_heads(self.point.host)[self.index]

    @property
    def module(self) -> nn.Module:
        return find_module(self.point.encoder, self._path)

    def prepare(self, like: Tensor | None = None) -> None:
        """Find the module whose output the head reads, by a pass over one image.

        Raises:
            ValueError: there is none before the next stage.
        """
        encoder, point = self.point.encoder, self.point.module
        names = {module: name for name, module in encoder.named_modules()}
        seen: list[tuple[nn.Module, Any]] = []
        handles = [
            module.register_forward_hook(lambda module, args, output: seen.append((module, output)))
            for module in names
        ]
        blank = self.point.blank_images(1, like)
        values = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0))
        image = values.to(blank)
        try:
            with scoring_mode(encoder, batch_statistics=False):
                read = encoder(image)[self.head.in_index]
        finally:
            for handle in handles:
                handle.remove()
        at_point = next(i for i, (module, _) in enumerate(seen) if module is point)
        stages = stage_names(encoder)
        later = stages[_last_stage(stages, self.point.name) + 1 :]
        for position, (module, output) in enumerate(seen):
            if position > at_point and any(_is_in(names[module], stage) for stage in later):
                break
            for dim in (1, -1):
                if _is_map(output, dim, read, image.shape[-2:]):
                    self._path = names[module].split('.')
                    self._channel_dim = dim
                    self.behind = position > at_point
                    return
        raise ValueError(
            f'auxiliary head {self.index} reads output {self.head.in_index} of the backbone, which '
            f'is not there yet behind {self.point.path}; use an exit of its own, {_OWN}'
        )

    def map_losses(self, maps: Tensor, data_samples: list | Tensor) -> Tensor:
        head = self.head
        with scoring_mode(head, self.batch_statistics):
            logits = head([maps] * max(head.in_index + 1, -head.in_index))
        logits = logits if isinstance(logits, Tensor) else logits[0]
        labels = nearest(label_maps(data_samples), logits.shape[-2:])
        pixels = proxy_losses(head, logits, labels)
        return balanced_mean(pixels, labels, _num_classes(head), self.class_balance)


class OwnExit(MapExit):
    """A small head on detached features of the blocking point, where the model's lie deeper.

    Its loss is trained on the images that stay, by the run's optimizer; the rest of the model gets
    no gradient from it.

    Args:
        point: where images are blocked.
        in_channels: there; None finds out by a pass over a blank image.
        channels: of its hidden layer.
        pool, class_balance: see :class:`MapExit`.

    Raises:
        ValueError: ``in_channels`` is needed and cannot be found out, or the model predicts no
            classes.
    """

    trained = True

    def __init__(
        self,
        point: BlockingPoint,
        in_channels: int | None,
        channels: int,
        pool: int | None,
        class_balance: float,
    ) -> None:
        super().__init__(point, pool, class_balance)
        check_integer('channels', channels, low=1)
        head = final_head(point.host)
        if not hasattr(head, 'ignore_index'):
            raise ValueError(
                "criterion='hard' compares images by their classes, of which "
                f'{type(head).__name__} predicts none; use a criterion that needs no labels, such '
                "as 'rare'"
            )
        in_channels = channels_at(point, in_channels)
        self.ignore_index = head.ignore_index
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(channels, _num_classes(head), 1),
        )

    def prepare(self, like: Tensor | None = None) -> None:
        """Take over what the blocking point found out.

        Raises:
            ValueError: there are several outputs, or others than ``in_channels`` says.
        """
        self.point.prepare(like)
        found = self.layers[0].in_channels
        if len(self.point.channel_dims) > 1 or found != self.point.num_channels:
            raise ValueError(
                f'{self.point.path} returns {len(self.point.channel_dims)} feature map(s) '
                f'with {self.point.num_channels} channels, the exit reads one with {found}; '
                'choose another block_after or in_channels'
            )
        self._channel_dim = self.point.channel_dims[0]

    def map_losses(self, maps: Tensor, data_samples: list | Tensor) -> Tensor:
        # One NaN would reach all images through BatchNorm, and the weights through a gradient of 0.
        finite = maps.isfinite().flatten(1).all(dim=1)
        maps = torch.where(finite[:, None, None, None], maps, 0)
        with torch.enable_grad():
            logits = self.layers(maps)
            labels = nearest(label_maps(data_samples), logits.shape[-2:])
            ignored = labels.squeeze(1) == self.ignore_index
            pixels = F.cross_entropy(
                logits.float(), labels.squeeze(1).masked_fill(ignored, 0), reduction='none'
            ).masked_fill(ignored, 0)
            losses = balanced_mean(pixels, labels, logits.shape[1], self.class_balance)
            return losses.masked_fill(~finite, torch.nan)


def build_exit(
    model: nn.Module,
    point: BlockingPoint,
    batch_statistics: bool,
    exit: str | None = None,
    channels: int | None = None,
    in_channels: int | None = None,
    pool: int | None = None,
    class_balance: float | None = None,
) -> MapExit:
    """The exit of a segmentor behind its blocking point.

    Args:
        model: the host.
        point: where its images are blocked.
        batch_statistics: see :func:`scoring_mode`.
        exit: ``'auxiliary'``: the deepest auxiliary head that reads the blocked stage or one before
            it; ``'own'``: a head of its own; None: the first if there is one.
        channels, in_channels: of a head of its own, see :class:`OwnExit`; 64 channels by default.
        pool: see :class:`MapExit`.
        class_balance: see :class:`MapExit`; 0 by default.

    Raises:
        TypeError, ValueError: an option is outside its range, or there is no such head.
    """
    if exit is not None:
        check_choice('exit', exit, KINDS)
    index = _readable_head(model, point)
    if exit == 'auxiliary' and index is None:
        raise ValueError(
            f"exit='auxiliary': no auxiliary head of {type(model).__name__} reads a stage that has "
            f'run behind {point.path}; leave exit out for one of its own'
        )
    class_balance = 0.0 if class_balance is None else class_balance
    if exit == 'own' or index is None:
        channels = 64 if channels is None else channels
        return OwnExit(point, in_channels, channels, pool, class_balance)
    return AuxiliaryExit(point, index, batch_statistics, pool, class_balance)


def auxiliary_heads(model: nn.Module) -> list[nn.Module]:
    """All there are, none, one or several."""
    heads = getattr(model, 'auxiliary_head', None)
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _num_classes(head: BaseDecodeHead) -> int:
    """That labels tell apart: a binary head may have one channel for two."""
    return max(head.num_classes, head.out_channels)


def as_maps(output: Any, channel_dim: int, size: tuple[int, int]) -> Tensor:
    """What a module returned for images of (H, W) -> (N, C, h, w).

    Args:
        output: (N, C, h, w), (N, h, w, C), or (N, L, C), with or without one token in front that is
            no patch; or a tuple or list with such a tensor in first place.
        channel_dim: 1 or -1.
        size: (H, W).
    """
    output = output if isinstance(output, Tensor) else output[0]
    if channel_dim == 1:
        return output
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2)
    length = output.shape[1]
    for extra in (0, 1):
        stride = (size[0] * size[1] / (length - extra)) ** 0.5
        height, width = (round(side / stride) for side in size)
        if height * width == length - extra:
            return output[:, extra:].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f'{length} tokens for images of {size[0]}x{size[1]} are no grid; choose another block_after'
    )


def _is_map(output: Any, channel_dim: int, read: Tensor, size: tuple[int, int]) -> bool:
    if not isinstance(output, Tensor) or output.numel() < read.numel():
        return False
    if output.ndim not in (3, 4) or (output.ndim == 3 and channel_dim == 1):
        return False
    try:
        maps = as_maps(output, channel_dim, size)
    except ValueError:
        return False
    return maps.shape == read.shape and torch.equal(maps, read)


def _readable_head(model: nn.Module, point: BlockingPoint) -> int | None:
    """Which auxiliary head reads the deepest stage up to the blocking point, by the names alone."""
    encoder = point.encoder
    stages = stage_names(encoder)
    at = _last_stage(stages, point.name)
    if getattr(model, 'neck', None) is not None:
        return None  # the heads read what comes out of the neck
    outputs = output_stages(encoder)
    read = {}
    for index, head in enumerate(auxiliary_heads(model)):
        one = isinstance(head, BaseDecodeHead) and isinstance(head.in_index, int)
        if one and -len(outputs) <= head.in_index < len(outputs):
            read[index] = outputs[head.in_index]
    before = {index: stage for index, stage in read.items() if 0 <= stage <= at}
    return max(before, key=before.get) if before else None


def _last_stage(stages: list[str], name: str) -> int:
    """Which stage has run to its end behind a module; -1 if none has."""
    if name in stages:
        return stages.index(name)
    return next((i for i, stage in enumerate(stages) if _is_in(name, stage)), 0) - 1


def _is_in(name: str, stage: str) -> bool:
    return name == stage or name.startswith(f'{stage}.')
