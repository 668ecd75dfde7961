"""What differs between kinds of models: where to block, and what heads tell of single images.

A kind of model is one line in TASKS, under the name of its base class; subclasses share it. This
module knows none of them: each is added by the room that knows its heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..blocking import BlockingPoint, default_stage, least_trainable
from ..core.ranks import Ranks
from .exits import Exit


class Task:
    """A model of which nothing is known but that it has an encoder: no loss of single images.

    What a model cannot do raises ValueError.

    Args:
        model: the host.

    Attributes:
        encoder_name (str): of the host's attribute that holds the encoder.
        heads_read_images (bool): whether the model hands its images to the heads, too, so that
            ``single_pass``, which narrows what the encoder returns, will not do.
    """

    heads_read_images = False
    encoder_name = 'backbone'

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def encoder(self) -> nn.Module:
        """Its images are blocked in there."""
        encoder = getattr(self.model, self.encoder_name, None)
        if not isinstance(encoder, nn.Module):
            raise ValueError(
                f'{type(self.model).__name__} has no {self.encoder_name}, inside which its images '
                'could be blocked; PFBMixin needs one'
            )
        return encoder

    def default_stage(self) -> str:
        """Dotted name, inside the encoder, of the module to block after when the user names
        none."""
        return default_stage(self.encoder, [])

    def min_keep(self, ranks: Ranks) -> int:
        """Fewest images that a process can train the model on."""
        return least_trainable(self.model, ranks)

    def forward(self, image: Tensor) -> Any:
        """Run the whole model on (1, C, H, W), to count its operations."""
        return self.model(image, mode='tensor')

    def build_exit(self, point: BlockingPoint, ranks: Ranks, kind: str | None, seed: int) -> Exit:
        """What tells the loss of each image at the blocking point.

        Args:
            point: where images are blocked.
            ranks: the processes that train together.
            kind: ``'auxiliary'``, ``'own'``, or None for the first where there is one.
            seed: of the initial weights of one of its own.
        """
        raise self._unknown('has no loss of single images')

    def losses(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        """(N,) float32 loss of each image, after a forward pass in the mode the model is in."""
        raise self._unknown('has no loss of single images')

    def classifier_gradients(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        """(N, P) gradient of each image's loss with respect to the weight of the last layer."""
        raise self._unknown('has no last layer')

    def _unknown(self, what: str) -> ValueError:
        known = ', '.join(TASKS)
        return ValueError(
            f'{type(self.model).__name__} {what} that is known: what heads tell is known of '
            f"{known}. Use a criterion that does without, such as 'rare', or describe your model "
            'by a Task in pfb_mmseg.models.TASKS'
        )


TASKS: dict[str, type[Task]] = {}


def task_class(model_class: type) -> type[Task] | None:
    """The kind of a class of models; None if it is of none."""
    names = [base.__name__ for base in model_class.__mro__]
    return next((TASKS[name] for name in names if name in TASKS), None)


def task_of(model: nn.Module) -> Task:
    """The kind of a model, which may be of none in particular."""
    return (task_class(type(model)) or Task)(model)
