"""How long work tells how far it has got."""

from __future__ import annotations

from collections.abc import Callable

# What is being done, how much of it is done, and of how much; None if nobody knows.
Tell = Callable[[str, int, int | None], None]


def tell_nobody(what: str, done: int, total: int | None) -> None:
    """For work that nobody waits for."""
