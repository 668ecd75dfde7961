"""What a host can tell of the images of a batch, before it is trained on some of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..blocking import scoring_mode, shrink
from ..core import Candidates

if TYPE_CHECKING:
    from .mixin import PartialForwardBlocking

SCORE_DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


class HostCandidates(Candidates):
    """The images of a training step; the shallow part runs when something of it is asked for.

    Args:
        model: the host.
        pfb: its options: where and how images are scored.
        images: (N, C, H, W).
        data_samples: N, or labels in one tensor.
        vectors: (N, C) features, where the shallow part has run already (single_pass).
    """

    def __init__(
        self,
        model: nn.Module,
        pfb: PartialForwardBlocking,
        images: Tensor,
        data_samples: list | Tensor,
        vectors: Tensor | None = None,
    ) -> None:
        super().__init__(len(images), images.device)
        self.images = images
        self.data_samples = data_samples
        self._model = model
        self._pfb = pfb
        self._vectors = vectors
        self._scored_size = tuple(images.shape[-2:])

    def features(self) -> Tensor:
        if self._vectors is None:
            pfb = self._pfb
            images = pfb.task.encoder_images(self.images)
            if pfb.score_scale != 1:
                images = shrink(images, pfb.score_scale)
            self._scored_size = tuple(images.shape[-2:])
            by_batch = pfb.score_statistics == 'batch'
            exit = pfb.exit
            behind = exit.module if exit is not None and exit.behind else None
            with (
                scoring_mode(pfb.point.encoder, by_batch),
                nullcontext() if exit is None else exit.capture(),
                self._precision(),
            ):
                self._vectors = pfb.point.score(images, behind)
        return self._vectors

    def exit_losses(self) -> Tensor:
        vectors = self.features()
        with self._precision():
            return self._pfb.exit_losses(vectors, self.data_samples, self._scored_size)

    def losses(self) -> Tensor:
        with scoring_mode(self._model, batch_statistics=False):
            return self._pfb.task.losses(self.images, self.data_samples)

    def classifier_gradients(self) -> Tensor:
        with scoring_mode(self._model, batch_statistics=False):
            return self._pfb.task.classifier_gradients(self.images, self.data_samples)

    def _precision(self) -> AbstractContextManager:
        dtype = SCORE_DTYPES.get(self._pfb.score_dtype)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype, cache_enabled=False)
