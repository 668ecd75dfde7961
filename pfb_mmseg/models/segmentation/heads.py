"""What MMSegmentation's heads can be asked: the loss of each image, of which they give the mean."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn
from torch.nn import functional as F


class Labels(NamedTuple):
    """What a model's last head predicts.

    Attributes:
        num_classes: that the labels tell apart.
        channels: of its logits; 1 where two classes, or one and nothing, share a channel.
        ignore_index: label of pixels that do not count.
        over_labelled: whether its loss is a mean over labelled pixels (``avg_non_ignore``), else
            over all pixels.
    """

    num_classes: int
    channels: int
    ignore_index: int
    over_labelled: bool


def labels_of(model: nn.Module) -> Labels:
    """What the head predicts whose prediction counts; ValueError if that is no classes."""
    head = last_head(model)
    num_classes = getattr(head, 'num_classes', None)
    ignore_index = getattr(head, 'ignore_index', None)
    if num_classes is None or ignore_index is None:
        raise ValueError(
            'an early exit compares images by their classes, of which the '
            f'{type(head).__name__} of {type(model).__name__} predicts none; use a criterion that '
            "needs no labels, such as 'rare', with exit_loss_weight=0"
        )
    channels = getattr(head, 'out_channels', None)
    channels = channels if isinstance(channels, int) else num_classes
    return Labels(num_classes, channels, ignore_index, _over_labelled(head))


def loss_functions(head: nn.Module) -> list[nn.Module]:
    """All there are, none, one or several."""
    functions = getattr(head, 'loss_decode', [])
    return list(functions) if isinstance(functions, nn.ModuleList) else [functions]


def _over_labelled(head: nn.Module) -> bool:
    return any(getattr(function, 'avg_non_ignore', False) for function in loss_functions(head))


def image_losses(head: BaseDecodeHead, logits: Tensor, labels: Tensor) -> Tensor:
    """What a head's loss functions make of each image: (N, C, H, W) logits, as large as the
    (N, 1, H, W) labels -> (N,) float32.

    As in the loss that is trained, a mean over all pixels of an image, of which ignored ones count
    as 0, or with ``avg_non_ignore`` over the labelled ones. ValueError if a loss function gives no
    value for each pixel, as Dice does not.
    """
    return image_means(head, pixel_losses(head, logits, labels), labels)


def image_means(head: BaseDecodeHead, pixels: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W) losses of pixels -> (N,), see :func:`image_losses`; 0 for an unlabelled image."""
    if not _over_labelled(head):
        return pixels.mean(dim=(1, 2))
    labelled = (labels != head.ignore_index).flatten(1).sum(dim=1)
    return pixels.flatten(1).sum(dim=1) / labelled.clamp(min=1)


def pixel_sums(logits: Tensor, labels: Tensor, kind: Labels) -> tuple[Tensor, Tensor]:
    """Cross entropy of an early exit: (N, C, h, w) logits, of which one channel stands for two
    classes, and (N, 1, h, w) labels -> (N,) float32 sums over the pixels of each image, and (N,)
    how many pixels its mean counts."""
    pixels, ignored = _cross_entropy(logits, labels.squeeze(1), kind.ignore_index)
    sums = pixels.flatten(1).sum(dim=1)
    if kind.over_labelled:
        return sums, (~ignored).flatten(1).sum(dim=1)
    return sums, torch.full_like(sums, pixels[0].numel())


def pixel_losses(head: BaseDecodeHead, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W) float32, see :func:`image_losses`."""
    labels = labels.squeeze(1)
    total = logits.new_zeros((), dtype=torch.float32)
    for function in loss_functions(head):
        options = inspect.signature(function.forward).parameters
        pixels = None
        if {'ignore_index', 'reduction_override'} <= {*options}:
            pixels = function(
                logits.float(), labels, ignore_index=head.ignore_index, reduction_override='none'
            )
            if (
                pixels.shape == logits.shape
            ):  # a sigmoid for each class: the trained loss is the mean
                pixels = pixels.mean(dim=1)
        if pixels is None or pixels.shape != labels.shape:
            raise ValueError(
                f'{type(function).__name__} of {type(head).__name__} gives no loss for each pixel, '
                "but images are compared by theirs; use CrossEntropyLoss, or criterion='hard', "
                'which asks the early exit'
            )
        total = total + pixels
    return total


def ranks_images(head: BaseDecodeHead) -> bool:
    """Whether the head's loss is the cross entropy of softmax of all pixels alike, so that it is a
    mean over the losses of single images."""
    return head.sampler is None and all(
        type(f) is CrossEntropyLoss and not (f.use_sigmoid or f.use_mask)
        for f in loss_functions(head)
    )


def weighs_classes(head: BaseDecodeHead) -> bool:
    """Whether classes count differently; then MMSegmentation divides by the sum of their weights
    over a batch, and not by the number of pixels."""
    return any(getattr(f, 'class_weight', None) is not None for f in loss_functions(head))


def batch_mean(head: BaseDecodeHead, pixels: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W) losses of pixels -> the loss over the batch of a head that weighs no classes."""
    if not _over_labelled(head):
        return pixels.mean()
    return pixels.sum() / (labels != head.ignore_index).sum().clamp(min=1)


def proxy_losses(head: BaseDecodeHead, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, H, W) losses as :func:`pixel_losses`; by cross entropy where the head's functions rank no
    images: Dice and Lovasz compare the pixels of a whole batch, that of sigmoid waits for the
    device."""
    if ranks_images(head):
        return pixel_losses(head, logits, labels)
    return _cross_entropy(logits, labels.squeeze(1), head.ignore_index)[0]


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(N, H, W) float32 losses, 0 where a pixel is ignored; and (N, H, W), where that is."""
    ignored = labels == ignore_index
    if logits.shape[1] == 1:  # one channel for two classes
        target = (labels == 1)[:, None].float()
        pixels = F.binary_cross_entropy_with_logits(logits.float(), target, reduction='none')
        pixels = pixels.squeeze(1)
    else:
        target = labels.masked_fill(ignored, 0)
        pixels = F.cross_entropy(logits.float(), target, reduction='none')
    return pixels.masked_fill(ignored, 0), ignored


def last_head(model: nn.Module) -> nn.Module | None:
    """The head whose prediction counts, the last stage of a cascade; None if there is none."""
    head = getattr(model, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head


def final_head(model: nn.Module) -> BaseDecodeHead:
    """The same, or ValueError if there is none that is built as MMSegmentation's are."""
    head = last_head(model)
    if not isinstance(head, BaseDecodeHead):
        raise ValueError(
            f'{type(model).__name__} has {type(head).__name__} as decode_head; losses of single '
            'images are taken from subclasses of BaseDecodeHead only; use another criterion, such '
            "as 'hard' or 'rare'"
        )
    return head


def label_maps(data_samples: list | Tensor) -> Tensor:
    """(N, 1, H, W) integers: the ground truth of N data samples, which ValueError misses in one, or
    as it stands in a tensor."""
    if isinstance(data_samples, Tensor):
        return data_samples
    if any('gt_sem_seg' not in sample for sample in data_samples):
        raise ValueError(
            'images are compared by the loss of their gt_sem_seg, which a data sample lacks; use a '
            "criterion that needs no labels, such as 'rare'"
        )
    return torch.stack([sample.gt_sem_seg.data for sample in data_samples])


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) labels -> (N, 1, h, w): of each pixel the label in its middle."""
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long()
        for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return labels.index_select(-2, rows).index_select(-1, columns)
