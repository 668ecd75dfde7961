"""The classifier of MMPretrain, with blocked training steps."""

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from ..blocking.stages import early_stage
from ..segmentors import PFBMixin


@MODELS.register_module()
class PFBImageClassifier(PFBMixin, ImageClassifier):
    """ImageClassifier that trains on the rare images of each batch. Takes ``pfb=dict(...)``."""

    def default_stage(self) -> str:
        return early_stage(self.backbone)
