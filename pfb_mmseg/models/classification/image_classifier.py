"""The classifier of MMPretrain, with blocked training steps."""

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from ..mixin import PFBMixin


@MODELS.register_module()
class PFBImageClassifier(PFBMixin, ImageClassifier):
    """ImageClassifier that trains on the rare images of each batch. Takes ``pfb=dict(...)``."""
