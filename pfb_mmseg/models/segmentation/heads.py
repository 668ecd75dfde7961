"""What MMSegmentation's heads can be asked: the loss of each image, of which they give the mean."""

from __future__ import annotations

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn
from torch.nn import functional as F


def image_losses(head: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """What a head's loss functions make of each image.

    The mean over the batch is the head's loss, where it averages over all pixels (MMSegmentation's
    default, ``avg_non_ignore=False``).

    Args:
        head: a BaseDecodeHead; its loss functions, their weights and ``ignore_index`` are used.
        logits: (N, C, H, W), as large as the labels.
        labels: (N, 1, H, W).

    Returns:
        (N,) float32; mean over all pixels of an image, ignored ones count as 0.

    Raises:
        ValueError: a loss function gives no value for each pixel, as Dice does not.
    """
    return _pixel_losses(head, logits, labels).mean(dim=(1, 2))


def _pixel_losses(head: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.squeeze(1)
    functions = head.loss_decode
    total = logits.new_zeros((), dtype=logits.dtype).float()
    for function in functions if isinstance(functions, nn.ModuleList) else [functions]:
        pixels = function(
            logits.float(), labels, ignore_index=head.ignore_index, reduction_override='none'
        )
        if pixels.shape != labels.shape:
            raise ValueError(
                f'{type(function).__name__} of {type(head).__name__} gives no loss for each pixel, '
                'but images are compared by theirs; use CrossEntropyLoss'
            )
        total = total + pixels
    return total


def proxy_losses(head: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each pixel, with cross entropy in place of loss functions that rank no images.

    Args:
        head: a BaseDecodeHead. Where all its functions are the cross entropy of softmax, they are
            used; others, such as Dice or Lovasz, compare the pixels of a whole batch, or wait for
            the device, as that of sigmoid does.
        logits, labels: see :func:`image_losses`.

    Returns:
        (N, H, W) float32; 0 where a pixel is ignored.
    """
    functions = head.loss_decode
    functions = functions if isinstance(functions, nn.ModuleList) else [functions]
    if all(type(f) is CrossEntropyLoss and not (f.use_sigmoid or f.use_mask) for f in functions):
        return _pixel_losses(head, logits, labels)
    labels, ignored = labels.squeeze(1), labels.squeeze(1) == head.ignore_index
    if logits.shape[1] == 1:  # one channel for two classes
        target = (labels == 1)[:, None].float()
        pixels = F.binary_cross_entropy_with_logits(logits.float(), target, reduction='none')
        pixels = pixels.squeeze(1)
    else:
        target = labels.masked_fill(ignored, 0)
        pixels = F.cross_entropy(logits.float(), target, reduction='none')
    return pixels.masked_fill(ignored, 0)


def balanced_mean(pixels: Tensor, labels: Tensor, num_classes: int, exponent: float) -> Tensor:
    """Mean over each image, in which classes that cover less of it count for more.

    Args:
        pixels: (N, H, W) of any values.
        labels: (N, 1, H, W). What is none of ``num_classes`` is a class of its own.
        exponent: a pixel of a class that covers n pixels of its image has the weight n^-exponent:
            0 lets all pixels count alike, 1 all classes in the image.

    Returns:
        (N,) means.
    """
    if exponent == 0:
        return pixels.mean(dim=(1, 2))
    labels = labels.flatten(1)
    labels = labels.where((labels >= 0) & (labels < num_classes), num_classes)
    areas = pixels.new_zeros(len(labels), num_classes + 1)
    areas = areas.scatter_add_(1, labels, torch.ones_like(labels, dtype=areas.dtype))
    weights = areas.gather(1, labels).pow(-exponent)
    return (pixels.flatten(1) * weights).sum(dim=1) / weights.sum(dim=1)


def final_head(model: nn.Module) -> BaseDecodeHead:
    """The head whose prediction counts; the last stage of a cascade.

    Raises:
        ValueError: the model has none, or one that is not built as MMSegmentation's are.
    """
    head = getattr(model, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if not isinstance(head, BaseDecodeHead):
        raise ValueError(
            f'{type(model).__name__} has {type(head).__name__} as decode_head; losses of single '
            'images are taken from subclasses of BaseDecodeHead only'
        )
    return head


def label_maps(data_samples: list | Tensor) -> Tensor:
    """(N, 1, H, W) integers: the ground truth of N data samples, or as it stands in a tensor.

    Raises:
        ValueError: a sample has no ``gt_sem_seg``.
    """
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
