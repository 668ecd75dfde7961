"""What the heads of MMSegmentation's models tell of single images."""

from __future__ import annotations

from mmseg.models.utils import resize
from torch import Tensor, nn

from ...blocking import BlockingPoint, default_stage
from ...core.criteria.divbs import classifier_gradients, logits_gradient
from ...core.ranks import Ranks
from ..exits import Exit
from ..task import TASKS, Task
from .exits import AuxiliaryExit, MapExit, auxiliary_heads, readable_head
from .heads import final_head, image_losses, label_maps, labels_of


class SegmentorTask(Task):
    """Any subclass of BaseSegmentor: label maps, losses of pixels, maybe auxiliary heads.

    Those that read text beside images call their encoder ``image_encoder``, may shrink what it gets
    and hand the images to the head too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.heads_read_images = not hasattr(model, 'backbone') and hasattr(model, 'image_encoder')
        if self.heads_read_images:
            self.encoder_name = 'image_encoder'

    def default_stage(self) -> str:
        indices = [getattr(head, 'in_index', None) for head in auxiliary_heads(self.model)]
        return default_stage(self.encoder, [index for index in indices if isinstance(index, int)])

    def forward(self, image: Tensor) -> Tensor:
        # Unlike mode='tensor', this is known to heads that predict masks, too.
        size = tuple(image.shape[-2:])
        shapes = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), size)
        return self.model.encode_decode(image, [shapes])

    def build_exit(self, point: BlockingPoint, ranks: Ranks, kind: str | None, seed: int) -> Exit:
        index = None if kind == 'own' else readable_head(self.model, point)
        if index is not None:
            return AuxiliaryExit(point, index)
        if kind == 'auxiliary':
            raise ValueError(
                f"exit='auxiliary': no auxiliary head of {type(self.model).__name__} predicts the "
                f'classes of the labels from a stage that has run behind {point.path}; leave exit '
                'out for one of its own'
            )
        return MapExit(point, ranks, seed, labels_of(self.model))

    def losses(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        """(N,) loss of each image in the decode head."""
        return self._losses(self._logits(images), data_samples)

    def classifier_gradients(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        head = final_head(self.model)
        conv_seg = head.conv_seg
        if not isinstance(conv_seg, nn.Conv2d) or conv_seg.kernel_size != (1, 1):
            raise ValueError(
                "criterion='divbs' reads the gradient of a 1x1 convolution conv_seg, which "
                f'{type(head).__name__} lacks; use another decode head'
            )
        features: list[Tensor] = []
        hook = conv_seg.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            logits = self._logits(images)
        finally:
            hook.remove()
        gradient = logits_gradient(logits, lambda leaf: self._losses(leaf, data_samples))
        return classifier_gradients(features[-1], gradient)

    def _logits(self, images: Tensor) -> Tensor:
        head = final_head(self.model)
        logits = self.model(images, mode='tensor')
        if not isinstance(logits, Tensor):
            raise ValueError(
                f'{type(head).__name__} returns {type(logits).__name__} and not one map of logits, '
                "so that images cannot be compared by its loss; use criterion='hard' or 'rare'"
            )
        return logits

    def _losses(self, logits: Tensor, data_samples: list | Tensor) -> Tensor:
        head, labels = final_head(self.model), label_maps(data_samples)
        logits = resize(logits, labels.shape[2:], mode='bilinear', align_corners=head.align_corners)
        return image_losses(head, logits, labels)


TASKS['BaseSegmentor'] = SegmentorTask
