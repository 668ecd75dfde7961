"""Which module is "the third stage", for each family of encoders. One table, easy to extend.

A new family is one line in FAMILIES, under the name of its class; subclasses share it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn


class Family(NamedTuple):
    """How the encoders of one family are laid out.

    Attributes:
        stages: encoder -> dotted names of the modules that end its stages, in running order.
        outputs: encoder -> for each of its outputs, the position in ``stages`` of the stage it
            comes straight from, -1 if it comes from anything behind or beside them. None: the
            encoder's ``out_indices``, or one output for each stage.
        early: how many stages a classifier runs on all images, where the paper names another number
            than the rule of :func:`early_stage`.
    """

    stages: Callable[[nn.Module], list[str]]
    outputs: Callable[[nn.Module], Sequence[int]] | None = None
    early: int | None = None


def _fixed(*names: str) -> Callable[[nn.Module], list[str]]:
    return lambda encoder: list(names)


def _entries(*lists: str) -> Callable[[nn.Module], list[str]]:
    """The entries of ModuleLists, whose own entries are run one after the other."""
    return lambda encoder: [
        f'{name}.{entry}'
        for name in lists
        for entry, _ in encoder.get_submodule(name).named_children()
    ]


def _lasts(name: str, inner: str = '') -> Callable[[nn.Module], list[str]]:
    """Of each entry of a ModuleList, the last module in its list of blocks."""

    def stages(encoder: nn.Module) -> list[str]:
        paths = [f'{entry}{inner}' for entry in _entries(name)(encoder)]
        return [f'{path}.{len(encoder.get_submodule(path)) - 1}' for path in paths]

    return stages


def _inside(name: str) -> Callable[[nn.Module], list[str]]:
    """The stages of another encoder inside this one."""
    return lambda encoder: [f'{name}.{stage}' for stage in stage_names(encoder.get_submodule(name))]


def _none(encoder: nn.Module) -> tuple[int, ...]:
    return ()


# A chain of stages needs no line here if its structure gives it away, see _by_structure.
FAMILIES: dict[str, Family] = {
    # Several resolutions side by side: each output is a branch, not a stage.
    'HRNet': Family(_fixed('layer1', 'stage2', 'stage3', 'stage4'), _none),
    # Transformers and what is laid out like them: a stage ends with its norm or its last block.
    'SwinTransformer': Family(_lasts('stages', '.blocks')),
    'MixVisionTransformer': Family(_lasts('layers')),
    'MSCAN': Family(lambda e: [f'norm{i + 1}' for i in range(e.num_stages)]),
    'PCPVT': Family(
        lambda e: (
            _lasts('stages')(e)  # MMPretrain's, and of MMSegmentation's either end
            if hasattr(e, 'stages')
            else _entries('norm_list')(e)
            if e.norm_after_stage
            else _lasts('layers')(e)
        )
    ),
    'PyramidVisionTransformer': Family(_lasts('layers')),
    'T2T_ViT': Family(_entries('encoder')),
    'XCiT': Family(_entries('xca_layers', 'ca_layers')),
    'VAN': Family(lambda e: [_entries(f'blocks{i + 1}')(e)[-1] for i in range(e.num_stages)]),
    # Two or three branches: the one that goes deep holds the stages.
    'BiSeNetV1': Family(_inside('context_path.backbone'), _none),
    'BiSeNetV2': Family(
        lambda e: [f'semantic.{stage}' for stage in e.semantic.semantic_stages],
        lambda e: [index - 1 for index in e.out_indices],  # output 0 is the fusion of both
    ),
    'DDRNet': Family(lambda e: ['stem', *_entries('context_branch_layers')(e)], _none),
    'PIDNet': Family(lambda e: ['stem', *_entries('i_branch_layers')(e)], _none),
    'ICNet': Family(_inside('backbone'), _none),
    'FastSCNN': Family(
        _fixed('learning_to_downsample', 'global_feature_extractor', 'feature_fusion')
    ),
    # Encoders with a decoder of their own, which counts as lying behind the last stage.
    'STDCContextPathNet': Family(
        _inside('backbone'), lambda e: [e.backbone.num_shallow_features, -1, -1, -1]
    ),
    'STDCNet': Family(_entries('stages'), lambda e: range(e.num_shallow_features, len(e.stages))),
    'UNet': Family(_entries('encoder'), _none),
    'ERFNet': Family(_entries('encoder', 'decoder'), _none),
    'CGNet': Family(_fixed('norm_prelu_0', 'norm_prelu_1', 'norm_prelu_2')),
    'ResNet_CIFAR': Family(lambda e: _by_structure(e), early=1),  # Table S5
    # Chains whose stages have names or places of their own.
    'VGG': Family(lambda e: [f'features.{end - 1}' for _, end in e.range_sub_modules]),
    'InceptionV3': Family(lambda e: _children(e, r'Mixed_\w+')),
    'Conformer': Family(lambda e: _children(e, r'conv_trans_\d+')),
    'Sequential': Family(lambda e: [name for name, _ in e.named_children()]),
}


def stage_names(encoder: nn.Module) -> list[str]:
    """Dotted names of an encoder's stages in the order in which they run; empty if unknown."""
    prefix, inner = _unwrapped(encoder)
    family = _family(inner)
    names = family.stages(inner) if family else _by_structure(inner)
    return [f'{prefix}{name}' for name in names]


def output_stages(encoder: nn.Module) -> Sequence[int]:
    """For each output of an encoder the position of its stage, see :class:`Family`."""
    _, inner = _unwrapped(encoder)
    family = _family(inner)
    if family and family.outputs:
        return family.outputs(inner)
    return getattr(inner, 'out_indices', range(len(stage_names(inner))))


def default_stage(encoder: nn.Module, read_indices: list[int]) -> str:
    """Dotted name, inside a backbone, of the stage to block after when the user names none.

    It is the deepest stage that an auxiliary head reads and that is not the last one (the
    supplement, B.2), else the one at two thirds of the depth, which is the third of four.

    Args:
        encoder: the backbone.
        read_indices: positions, in its outputs, of what the auxiliary heads read; negative ones
            count from the end.

    Raises:
        ValueError: the encoder's stages are not known.
    """
    stages = _known_stages(encoder)
    outputs = output_stages(encoder)
    read = [outputs[i] for i in read_indices if -len(outputs) <= i < len(outputs)]
    before_last = [stage for stage in read if 0 <= stage < len(stages) - 1]
    if before_last:
        return stages[max(before_last)]
    return stages[_at_two_thirds(len(stages))]


def early_stage(encoder: nn.Module) -> str:
    """Dotted name, inside a backbone, of the stage to block after in a classifier, when the user
    names none.

    Behind it lies most of a classifier, and no auxiliary head says where its features are good
    enough to compare images by. The paper takes the first of four stages of Swin and the second of
    ResNet, whose first ones it calls less informative (Sec. 4.3, Fig. 3a), and the first of a
    ResNet for CIFAR (Table S5). In other words: a quarter of the depth where the stages attend to
    the whole image by then, else a half.

    Raises:
        ValueError: the encoder's stages are not known.
    """
    stages = _known_stages(encoder)
    family = _family(_unwrapped(encoder)[1])
    if family and family.early:
        return stages[family.early - 1]
    quarter = stages[max(1, len(stages) // 4) - 1]
    return quarter if _attends(encoder.get_submodule(quarter)) else stages[len(stages) // 2 - 1]


def _known_stages(encoder: nn.Module) -> list[str]:
    stages = stage_names(encoder)
    if len(stages) < 2:
        prefix, inner = _unwrapped(encoder)
        children = [f'{prefix}{name}' for name, _ in inner.named_children()]
        # Not the last one: something has to lie behind it.
        example = children[_at_two_thirds(len(children))] if children else None
        raise ValueError(
            f'no rule says where {type(encoder).__name__} has its stages; name the module to '
            f'block after, block_after={"backbone." + example if example else None!r} for '
            f'example, one of the children {", ".join(children)} or a module inside them'
        )
    return stages


def _at_two_thirds(num: int) -> int:
    """Which of so many stages, counted from 0, ends at two thirds of the depth; not the last."""
    return max(min(math.ceil(num * 2 / 3), num - 1) - 1, 0)


def _unwrapped(encoder: nn.Module) -> tuple[str, nn.Module]:
    """The encoder inside wrappers that hold nothing else, such as LoRA's, behind the prefix of its
    modules' names: ``'module.'``."""
    children = [*encoder.named_children()]
    if _family(encoder) or len(children) != 1:
        return '', encoder
    name, child = children[0]
    if isinstance(child, (nn.ModuleList, nn.Sequential)):
        return '', encoder
    prefix, inner = _unwrapped(child)
    return f'{name}.{prefix}', inner


def _attends(stage: nn.Module) -> bool:
    """Whether patches look at each other: something makes queries of them."""
    return any(
        isinstance(module, nn.MultiheadAttention) or hasattr(module, 'qkv') or hasattr(module, 'q')
        for module in stage.modules()
    )


def _family(encoder: nn.Module) -> Family | None:
    for base in type(encoder).__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__]
    return None


def _by_structure(encoder: nn.Module) -> list[str]:
    """Stages of a chain: named in a list, kept in a ModuleList, or numbered like ``layer1``."""
    for name in ('res_layers', 'stages', 'layers', 'blocks', 'network', 'features'):
        found = getattr(encoder, name, None)
        if isinstance(found, (list, tuple)) and all(isinstance(entry, str) for entry in found):
            return list(found)
        if isinstance(found, (nn.ModuleList, nn.Sequential)):
            return _entries(name)(encoder)
    return _children(encoder, r'(layer|stage|block)_?\d+')


def _children(encoder: nn.Module, pattern: str) -> list[str]:
    """Names of an encoder's children that a regular expression matches."""
    return [name for name, _ in encoder.named_children() if re.fullmatch(pattern, name)]
