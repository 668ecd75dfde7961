"""Layers that normalise over the batch, and how few images they can be trained on."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..core.ranks import Ranks

_POOLINGS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a layer keeps statistics of what went through it, whatever its class.

    All of torch's do so under this name, and so do those of other packages (mmcv's MMSyncBN).
    """
    return getattr(module, 'running_mean', None) is not None


def least_trainable(model: nn.Module, ranks: Ranks | None = None) -> int:
    """Fewest images that the model can be trained on: 2 if it normalises single pixels, else 1.

    BatchNorm behind a global average pooling, as in ASPP's image branch, sees one value per image
    and channel, and refuses a batch of one. Synchronised over several processes it sees theirs too.
    Found are poolings and norms that follow each other in an ``nn.Sequential``. ``ranks`` are the
    processes that train together; None: all there are.
    """
    ranks = Ranks() if ranks is None else ranks
    for module in model.modules():
        # Some modules pool by themselves: mmseg's with a scale, ResNeSt's split attention.
        pooled = getattr(module, 'pool_scale', None) == 1 or hasattr(module, 'rsoftmax')
        if (pooled and normalises_batch(module, ranks)) or (
            isinstance(module, nn.Sequential) and _normalises_single_pixels(module, ranks)
        ):
            return 2
    return 1


def _normalises_single_pixels(chain: nn.Sequential, ranks: Ranks) -> bool:
    pooled = False
    for part in chain:
        if pooled and normalises_batch(part, ranks):
            return True
        pooled = _leaves_one_pixel(part, pooled)
    return False


def _leaves_one_pixel(module: nn.Module, pooled: bool) -> bool:
    """Whether what comes out has one pixel; ``pooled``: whether what goes in has."""
    if isinstance(module, _POOLINGS):
        sizes = module.output_size
        return sizes == 1 or (isinstance(sizes, tuple) and set(sizes) == {1})
    if isinstance(module, nn.Upsample):
        return False
    if isinstance(module, nn.Sequential):
        for part in module:
            pooled = _leaves_one_pixel(part, pooled)
    # Of other modules with a pooling inside, such as squeeze-and-excitation, the branch is pooled
    # and not what they return.
    return pooled


def normalises_batch(module: nn.Module, ranks: Ranks) -> bool:
    """Whether anything in it normalises with statistics of its own process's images alone."""
    return any(_is_batch_norm(part) and not _synchronised(part, ranks) for part in module.modules())


def _is_batch_norm(module: nn.Module) -> bool:
    if isinstance(module, _InstanceNorm):
        return False
    return isinstance(module, _BatchNorm) or has_running_statistics(module)


def _synchronised(norm: nn.Module, ranks: Ranks) -> bool:
    """Whether it sees the images of several processes: of others it sees its own once more."""
    if isinstance(norm, nn.SyncBatchNorm):
        several = Ranks(norm.process_group).size > 1
    else:
        several = getattr(norm, 'group_size', 1) > 1  # of mmcv's
    return several and ranks.size > 1
