"""A bar for work that takes a while, where someone looks on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar('T')


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Gives the items one by one, and shows on a terminal how many are done."""
    console = Console(stderr=True)
    yield from progress.track(
        items, what, total, console=console, transient=True, disable=not console.is_terminal
    )
