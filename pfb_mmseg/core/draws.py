"""Random draws that repeat themselves: a function of a seed and of how many there were before."""

from __future__ import annotations

import torch


def generator_of(seed: int, turn: int, device: torch.device | str = 'cpu') -> torch.Generator:
    """The source of the draws of turn ``turn`` (an iteration, an epoch), counted from 0."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + turn) % 2**63)
