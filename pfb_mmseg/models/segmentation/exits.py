"""Early exits of segmentors: label maps are compared with what a head makes of a feature map."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from ...blocking import (
    BlockingPoint,
    feature_tensors,
    find_module,
    output_stages,
    scoring_mode,
    stage_names,
)
from ...core.ranks import Ranks
from ...core.representation import token_grid
from ..exits import Exit, ExitLosses, OwnExit, finite_rows
from .heads import (
    Labels,
    batch_mean,
    image_means,
    label_maps,
    labels_of,
    loss_functions,
    nearest,
    pixel_losses,
    pixel_sums,
    proxy_losses,
    ranks_images,
    weighs_classes,
)

_CHANNELS = 64


class AuxiliaryExit(Exit):
    """The model's own auxiliary head.

    Where it teaches, its loss over all images stands in place of that over the images that stay,
    which the model would compute behind the encoder; a weight of 1 makes the largest of its loss
    functions count once, whatever ``loss_weight`` says.

    Args:
        point: where images are blocked.
        index: which of the auxiliary heads.
    """

    name = 'the auxiliary head'

    def __init__(self, point: BlockingPoint, index: int) -> None:
        super().__init__(point)
        self.head_index = index
        self._path: list[str] = []
        self._channel_dim = 1

    @property
    def head(self) -> BaseDecodeHead:
        """The head, with whatever is wrapped around it."""
        return auxiliary_heads(self.point.host)[self.head_index]

    @property
    def module(self) -> nn.Module:
        return find_module(self.point.encoder, self._path)

    def prepare(self) -> None:
        """Find the module whose output the head reads, by a pass over one image.

        Raises:
            ValueError: there is none before the next stage.
        """
        if self._path:
            return
        host, encoder = self.point.host, self.point.encoder
        blank = self.point.blank_images(1)
        image = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0)).to(blank)
        names = {module: name for name, module in encoder.named_modules()}
        seen: list[tuple[nn.Module, Any]] = []
        handles = [
            module.register_forward_hook(lambda module, args, output: seen.append((module, output)))
            for module in names
        ]
        reads = f'auxiliary head {self.head_index} reads'
        try:
            with scoring_mode(host, batch_statistics=False):
                read = getattr(host, 'extract_feat', encoder)(image)[self.head.in_index]
        except Exception as error:  # whatever it is that this model makes of a blank image
            raise ValueError(
                f'{type(host).__name__}.extract_feat cannot take a blank image ({error}), so that '
                f"it is not known what {reads}; use exit='own'"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        if read.shape[1] != self.head.in_channels:
            raise ValueError(
                f'{reads} {self.head.in_channels} channels where a blank image has '
                f'{read.shape[1]}: {type(host).__name__}.extract_feat makes other maps of those of '
                "the backbone; use exit='own'"
            )
        at_point = [module for module, _ in seen].index(self.point.module)
        stages = stage_names(encoder)
        later = stages[_last_stage(stages, self.point.name) + 1 :]
        found: dict[str, tuple[int, bool]] = {}
        for position, (module, output) in enumerate(seen):
            if position > at_point and any(_is_in(names[module], stage) for stage in later):
                break
            for dim in (1, -1):
                if _is_map(output, dim, read, image.shape[-2:]):
                    found[names[module]] = dim, position > at_point
        if not found:
            raise ValueError(
                f'{reads} map {self.head.in_index} of those that heads are given, which is not '
                f"there yet behind {self.point.path}; use exit='own'"
            )
        # Blocks whose last norm starts with zeros return what they are given, until they learn:
        # what ends a stage comes first, then what runs last.
        name = next((stage for stage in reversed(stages) if stage in found), [*found][-1])
        self._path = name.split('.')
        self._channel_dim, self.behind = found[name]

    def logits(self, output: Any, size: tuple[int, int]) -> Tensor:
        return self._logits(as_maps(output, self._channel_dim, size))

    def _logits(self, maps: Tensor) -> Tensor:
        index = self.head.in_index
        return self.head([maps] * max(index + 1, -index))

    def losses(
        self, output: Any, samples: list | Tensor, size: tuple[int, int], weight: float
    ) -> ExitLosses:
        head, labels = self.head, label_maps(samples)
        maps, finite = finite_rows(as_maps(output, self._channel_dim, size))
        if not weight:
            with scoring_mode(head):
                return ExitLosses(self._of_images(self._logits(maps), labels, finite), {})
        logits = self._logits(maps)
        largest = max(getattr(function, 'loss_weight', 1.0) for function in loss_functions(head))
        scale = weight / (largest or 1.0)
        # Then one computation tells the images' losses and teaches.
        if ranks_images(head) and not weighs_classes(head):
            full = resize(
                logits, labels.shape[2:], mode='bilinear', align_corners=head.align_corners
            )
            pixels = pixel_losses(head, full, labels)
            loss = scale * batch_mean(head, pixels, labels)
            losses = image_means(head, pixels.detach(), labels).masked_fill(~finite, torch.nan)
            return ExitLosses(losses, {'exit.loss_ce': loss})
        if isinstance(samples, Tensor):
            samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=one)) for one in samples]
        training = {
            f'exit.{name}': value * scale if 'loss' in name else value
            for name, value in head.loss_by_feat(logits, samples).items()
        }
        return ExitLosses(self._of_images(logits.detach(), labels, finite), training)

    def _of_images(self, logits: Tensor, labels: Tensor, finite: Tensor) -> Tensor:
        """(N,) losses at the size of the logits; NaN where an image is not finite."""
        labels = nearest(labels, logits.shape[-2:])
        losses = image_means(self.head, proxy_losses(self.head, logits, labels), labels)
        return losses.masked_fill(~finite, torch.nan)


class MapExit(OwnExit):
    """A small head on the feature map of the blocking point.

    Args:
        point: where images are blocked.
        ranks: the processes that train together.
        seed: of the initial weights.
        labels: that the model's last head predicts.
    """

    def __init__(self, point: BlockingPoint, ranks: Ranks, seed: int, labels: Labels) -> None:
        super().__init__(point, ranks, seed)
        self._labels = labels

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(self.point.num_channels, _CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(_CHANNELS, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(_CHANNELS, self._labels.channels, 1),
        )

    def features(self, output: Any, size: tuple[int, int]) -> Tensor:
        """(N, C, h, w); several maps, as HRNet's branches are, at the size of the largest."""
        tensors = zip(feature_tensors(output), self.point.channel_dims, strict=True)
        maps = [as_maps(tensor, dim, size) for tensor, dim in tensors]
        if len(maps) == 1:
            return maps[0]
        largest = max((tuple(one.shape[-2:]) for one in maps), key=math.prod)
        return torch.cat([resize(one, largest, mode='bilinear') for one in maps], dim=1)

    def sums(self, logits: Tensor, samples: list | Tensor) -> tuple[Tensor, Tensor]:
        labels = nearest(label_maps(samples), logits.shape[-2:])
        return pixel_sums(logits, labels, self._labels)


def auxiliary_heads(model: nn.Module) -> list[nn.Module]:
    """All there are, none, one or several."""
    heads = getattr(model, 'auxiliary_head', None)
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def readable_head(model: nn.Module, point: BlockingPoint) -> int | None:
    """Which auxiliary head predicts the classes of the labels from the deepest stage up to the
    blocking point, by the names alone; None if none does."""
    if getattr(model, 'neck', None) is not None:
        return None  # the heads read what comes out of the neck
    at = _last_stage(stage_names(point.encoder), point.name)
    outputs = output_stages(point.encoder)
    before = {
        index: outputs[head.in_index]
        for index, head in enumerate(auxiliary_heads(model))
        if _predicts_labels(head, model)
        and -len(outputs) <= head.in_index < len(outputs)
        and 0 <= outputs[head.in_index] <= at
    }
    return max(before, key=before.get) if before else None


def as_maps(output: Any, channel_dim: int, size: tuple[int, int]) -> Tensor:
    """What a module returned for images of (H, W) -> (N, C, h, w).

    Args:
        output: (N, C, h, w), (N, h, w, C), or (N, L, C), with or without one token in front that is
            no patch; or a tuple or list with such a tensor in first place.
        channel_dim: 1 or -1.
        size: (H, W).

    Raises:
        ValueError: the tokens are no grid.
    """
    output = output if isinstance(output, Tensor) else output[0]
    if channel_dim == 1:
        return output
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2)
    length = output.shape[1]
    for extra in (0, 1):
        grid = token_grid(length - extra, *size)
        if grid is not None:
            return output[:, extra:].transpose(1, 2).unflatten(2, grid)
    raise ValueError(
        f'{length} tokens for images of {size[0]}x{size[1]} are no grid; choose another block_after'
    )


def _is_map(output: Any, channel_dim: int, read: Tensor, size: tuple[int, int]) -> bool:
    """Whether a module returned the very map that a head reads."""
    if not isinstance(output, Tensor) or output.numel() < read.numel():
        return False
    if output.ndim not in (3, 4) or (output.ndim == 3 and channel_dim == 1):
        return False
    try:
        maps = as_maps(output, channel_dim, size)
    except ValueError:
        return False
    return maps.shape == read.shape and torch.equal(maps, read)


def _predicts_labels(head: nn.Module, model: nn.Module) -> bool:
    """Whether a head compares one feature map with the label maps as they are: those of boundaries
    and edges make labels of their own."""
    if not isinstance(head, BaseDecodeHead) or not isinstance(head.in_index, int):
        return False
    as_usual = all(
        getattr(type(head), name) is getattr(BaseDecodeHead, name)
        for name in ('loss', 'loss_by_feat', '_stack_batch_gt')
    )
    labels = labels_of(model)
    return (
        as_usual
        and head.num_classes >= labels.num_classes
        and head.out_channels >= labels.channels
        and head.ignore_index == labels.ignore_index
    )


def _last_stage(stages: list[str], name: str) -> int:
    """Which stage has run to its end behind a module; -1 if none has."""
    if name in stages:
        return stages.index(name)
    return next((i for i, stage in enumerate(stages) if _is_in(name, stage)), 0) - 1


def _is_in(name: str, stage: str) -> bool:
    return name == stage or name.startswith(f'{stage}.')
