"""What the heads of MMPretrain's classifiers tell of single images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import BatchNorm1d

from ...blocking import BlockingPoint, early_stage
from ...blocking.norms import normalises_batch
from ...core.criteria.divbs import classifier_gradients, logits_gradient
from ...core.ranks import Ranks
from ..task import TASKS, Task
from .exits import LinearExit
from .heads import image_losses, linear_layers, loss_calls, loss_function


class ClassifierTask(Task):
    """ImageClassifier and its subclasses: a backbone, maybe a neck, and a head with its loss."""

    def default_stage(self) -> str:
        return early_stage(self.encoder)

    def min_keep(self, ranks: Ranks) -> int:
        """Behind the pooling a BatchNorm sees one value per image, and refuses a batch of one."""
        neck, head = self.model.neck, self.model.head
        # A neck may come before the pooling, too; vectors are what comes behind it.
        vectors = [] if neck is None else [m for m in neck.modules() if isinstance(m, BatchNorm1d)]
        pooled = vectors if head is None else [*vectors, head]
        if any(normalises_batch(part, ranks) for part in pooled):
            return 2
        return super().min_keep(ranks)

    def build_exit(
        self, point: BlockingPoint, ranks: Ranks, kind: str | None, seed: int
    ) -> LinearExit:
        head = self.model.head
        if kind == 'auxiliary':
            raise ValueError("exit='auxiliary': classifiers have no auxiliary head; leave exit out")
        num_classes = getattr(head, 'num_classes', None)
        if num_classes is None:
            raise ValueError(
                'an early exit compares images by their classes, of which '
                f'{type(head).__name__} does not tell the number; use a criterion that needs no '
                "labels, such as 'rare', with exit_loss_weight=0"
            )
        several = any(base.__name__ == 'MultiLabelClsHead' for base in type(head).__mro__)
        return LinearExit(point, ranks, seed, num_classes, several)

    def losses(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        """(N,) loss of each image in the head; of several scores the sum."""
        function = loss_function(self.model)
        calls = loss_calls(self.model, images, data_samples)
        return sum(image_losses(function, call) for call in calls)

    def classifier_gradients(self, images: Tensor, data_samples: list | Tensor) -> Tensor:
        function, head = loss_function(self.model), self.model.head
        with linear_layers(head) as layers:
            calls = loss_calls(self.model, images, data_samples)
        call = calls[0]
        features = [inside for inside, scores in layers if scores is call.scores]
        if len(calls) > 1 or not features or features[0].ndim > 2:
            raise ValueError(
                "criterion='divbs' reads the gradient of the one linear layer that gives the "
                f'scores, which {type(head).__name__} lacks; use another head or criterion'
            )
        gradient = logits_gradient(
            call.scores, lambda scores: image_losses(function, call._replace(scores=scores))
        )
        return classifier_gradients(features[0], gradient)


TASKS['ImageClassifier'] = ClassifierTask
