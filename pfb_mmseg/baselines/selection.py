"""Rivals that choose within a batch, after a forward pass of all of it: loss top-k and DivBS."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..blocking import least_trainable, scoring_mode
from ..core import KeepQuota, Selection
from ..core.checks import check_choice, check_given, check_integer, check_keys
from ..core.selection import keep_lowest
from ..segmentors.filter import BatchFilter
from ..segmentors.samples import select_samples
from .divbs import classifier_gradients, select_diverse
from .losses import image_losses

SELECTION_METHODS = {'loss_topk': 'the highest losses', 'divbs': 'diverse gradients (DivBS)'}


class LabelledSelection(BatchFilter):
    """Chooses by labels: every image goes through the whole network once, without gradient.

    The scoring pass is one in eval mode, with the decode head and without the auxiliary ones.

    Args:
        model: the host, an EncoderDecoder or CascadeEncoderDecoder.
        method: ``'loss_topk'`` keeps the images of highest loss; ``'divbs'`` is
            :func:`select_diverse` on the gradients of the classifier convolution ``conv_seg``.
        prune_ratio: p, in [0, 1), as for PFB.
        min_keep: as for PFB.
        seed: the draws of iteration t are a function of (seed, t) alone.

    Raises:
        TypeError, ValueError: an option is misspelt or outside its range, or the decode head is
            none that the method can read.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        method: str,
        prune_ratio: float = 0.3,
        min_keep: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice('method', method, SELECTION_METHODS)
        check_integer('seed', seed, low=0)
        head = final_head(model)
        if method == 'divbs' and getattr(head.conv_seg, 'kernel_size', None) != (1, 1):
            raise ValueError(
                f"method='divbs' reads the gradient of a 1x1 convolution conv_seg, which "
                f'{type(head).__name__} lacks; use another decode head'
            )
        self.method = method
        self.seed = seed
        self.quota = KeepQuota(
            prune_ratio, least_trainable(model) if min_keep is None else min_keep
        )
        self._step = 0

    def describe(self, model: nn.Module) -> str:
        return (
            f'{self.quota.prune_ratio:.0%} of the images are dropped after a forward pass of all; '
            f'{SELECTION_METHODS[self.method]} stay'
        )

    def num_keep(self, batch_size: int) -> int:
        """Number of images that stay in the next blocked step."""
        return self.quota.keep(self._step, batch_size)

    def skip(self) -> None:
        """Let an iteration pass without looking at its batch."""
        self._step += 1

    @torch.compiler.disable  # it looks into the head while the network runs
    def choose(self, model: nn.Module, images: Tensor, data_samples: list) -> Selection:
        """Score a batch and say who stays.

        Args:
            model: the host.
            images: (N, C, H, W).
            data_samples: N, with ``gt_sem_seg``.
        """
        num_keep = self.num_keep(len(images))
        head = final_head(model)
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
        features: list[Tensor] = []
        hook = head.conv_seg.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            with scoring_mode(model, batch_statistics=False):
                logits = model(images, mode='tensor')
                if self.method == 'loss_topk':
                    losses = self._losses(head, logits, labels)
                    indices = keep_lowest(-losses.nan_to_num(nan=-torch.inf), num_keep)
                else:
                    with torch.enable_grad():
                        leaf = logits.detach().requires_grad_()
                        total = self._losses(head, leaf, labels).sum()
                        (logits_grad,) = torch.autograd.grad(total, leaf)
                    gradients = classifier_gradients(features[-1], logits_grad)
                    generator = torch.Generator(images.device).manual_seed(
                        (self.seed * 1_000_003 + self._step) % 2**63
                    )
                    indices = select_diverse(gradients, num_keep, generator)
        finally:
            hook.remove()
        self.skip()
        return Selection(indices, len(images), None)

    @staticmethod
    def _losses(head: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
        logits = resize(logits, labels.shape[2:], mode='bilinear', align_corners=head.align_corners)
        return image_losses(head, logits, labels)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._step)

    def set_extra_state(self, state: Tensor) -> None:
        self._step = int(state)


class LabelledSelectionMixin:
    """Trains on a part of each batch, chosen by :class:`LabelledSelection`.

    Takes one more argument, ``selection``, a dict with the options of that class. PFBHook runs its
    schedule and its log as with PFBMixin.
    """

    def __init__(self, *args: Any, selection: dict | None = None, **kwargs: Any) -> None:
        example = "selection=dict(method='loss_topk')"
        check_given(type(self).__name__, 'selection', selection, kwargs, example)
        check_keys('selection', selection, ('method', 'prune_ratio', 'min_keep', 'seed'))
        super().__init__(*args, **kwargs)
        self.chooser = LabelledSelection(self, **selection)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of the images that stay, as the host computes them."""
        chooser = self.chooser
        chooser.selection = None
        if self.training and chooser.pruning:
            if chooser.num_keep(len(inputs)) == len(inputs):
                chooser.skip()
            else:
                chooser.selection = chooser.choose(self, inputs, data_samples)
                inputs = chooser.selection.take(inputs)
                data_samples = select_samples(data_samples, chooser.selection)
        return super().loss(inputs, data_samples)


@MODELS.register_module()
class LabelledSelectionEncoderDecoder(LabelledSelectionMixin, EncoderDecoder):
    """EncoderDecoder with loss top-k or DivBS. Takes ``selection=dict(...)``."""


@MODELS.register_module()
class LabelledSelectionCascadeEncoderDecoder(LabelledSelectionMixin, CascadeEncoderDecoder):
    """CascadeEncoderDecoder, likewise. Takes ``selection=dict(...)``."""


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
