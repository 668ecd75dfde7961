"""The loss of each image of a batch, which MMSegmentation's heads only give as one mean."""

from __future__ import annotations

from torch import Tensor, nn


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
        total = total + pixels.mean(dim=(1, 2))
    return total
