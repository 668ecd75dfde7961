"""Bars for long work, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shown() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each thing that is told of, see :data:`pfb_mmseg.progress.Tell`."""
    from rich.console import Console
    from rich.progress import Progress

    # Prints pass over a bar on the same terminal; into a file they go straight.
    through = sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, redirect_stdout=through) as progress:
        tasks = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield tell
