"""InfoBatch for the classifier of MMPretrain; imported when a config asks for it."""

from mmpretrain.registry import MODELS

from .image_loss_classifier import ImageLossImageClassifier


@MODELS.register_module()
class InfoBatchImageClassifier(ImageLossImageClassifier):
    """ImageClassifier for InfoBatchSampler and InfoBatchHook."""
