"""Random draws that a resumed run repeats: a function of a seed and the iteration or epoch."""

from __future__ import annotations

import torch


def generator_of(seed: int, turn: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """A generator for the draws of one iteration or epoch, ``turn``, counted from 0."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + turn) % 2**63)
