"""The part of a checkpoint that belongs to PFB's hooks, ``checkpoint['pfb']``."""

from __future__ import annotations

from typing import Any

# Goes up whenever what the hooks write into a checkpoint is no longer read by the code before.
SCHEMA = 1


def part_to_save(checkpoint: dict) -> dict[str, Any]:
    """Where hooks put their state into a checkpoint that is about to be written."""
    return checkpoint.setdefault('pfb', {'schema': SCHEMA})


def part_to_resume(runner: Any, checkpoint: dict) -> dict[str, Any]:
    """What hooks wrote into a checkpoint; empty if they wrote none or the run is not resumed.

    Raises:
        ValueError: another version of pfb_mmseg wrote it in another layout.
    """
    part = checkpoint.get('pfb') if runner._resume else None
    if part is None:
        return {}
    if part.get('schema') != SCHEMA:
        raise ValueError(
            f'the checkpoint has PFB state of schema {part.get("schema")}, expected {SCHEMA}: '
            'resume it with the version of pfb_mmseg that wrote it, or start a new run from its '
            'weights with resume=False'
        )
    return part


def drop_model_state(checkpoint: dict) -> int:
    """Take PFB's own entries (``pfb.*``, ``*.pfb.*``) out of a model's weights.

    Returns:
        How many there were.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    names = [name for name in weights if 'pfb' in name.split('.')[:-1]]
    for name in names:
        del weights[name]
    return len(names)
