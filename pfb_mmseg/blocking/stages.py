"""Which module is "the third stage", for each family of encoders. One table, easy to extend."""

from __future__ import annotations

from torch import nn


def stage_names(encoder: nn.Module) -> list[str]:
    """Dotted names of an encoder's stages in the order in which they run; empty if unknown."""
    names = getattr(encoder, 'res_layers', None)  # ResNet and what is built like it
    return list(names) if names else []


def default_stage(encoder: nn.Module, read_indices: list[int]) -> str:
    """The stage to block after when the user names none.

    Args:
        encoder: a backbone.
        read_indices: positions, in the encoder's outputs, of what the auxiliary heads read.

    Returns:
        Dotted name inside the encoder: the deepest stage that an auxiliary head reads and that is
        not the last one (the supplement, B.2), else the one at two thirds of the depth.

    Raises:
        ValueError: the encoder's stages are not known.
    """
    stages = stage_names(encoder)
    if len(stages) < 2:
        raise ValueError(
            f'no rule says where {type(encoder).__name__} has its stages; name the module to '
            f"block after, e.g. block_after='backbone.{_children(encoder)[-1]}', one of the "
            f'children {", ".join(_children(encoder))} or a module inside them'
        )
    out_indices = getattr(encoder, 'out_indices', range(len(stages)))
    read = [out_indices[index] for index in read_indices if index < len(out_indices)]
    before_last = [stage for stage in read if 0 <= stage < len(stages) - 1]
    if before_last:
        return stages[max(before_last)]
    return stages[min(round(len(stages) * 2 / 3), len(stages) - 1) - 1]


def _children(encoder: nn.Module) -> list[str]:
    return [name for name, _ in encoder.named_children()] or ['<none>']
