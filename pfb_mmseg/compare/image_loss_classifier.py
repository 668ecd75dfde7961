"""The classifier of MMPretrain that tells the loss of each image; imported when it is asked for."""

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from .image_loss import ImageLossMixin


@MODELS.register_module()
class ImageLossImageClassifier(ImageLossMixin, ImageClassifier):
    """ImageClassifier for a ScoreSampler and its hook."""
