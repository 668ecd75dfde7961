"""Lines of other packages that a user would read as ours, held back one by one.

What is not listed here is shown: a warning of the user's code, and whatever a new version has to
say.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

# Printed while MMSegmentation is imported: the fork can read a data base of that name.
PRINTED = ('Could not import OneDL',)
# How a warning begins, and the module that gives it.
WARNED = (
    # mmcv without compiled operators; a model that needs them ends in an error which says so.
    ('Fail to import ``MultiScaleDeformableAttention``', 'mmcv.cnn.bricks.transformer'),
    # Of a torchvision of another build than torch, which MMPretrain needs; it reads no image.
    ('Failed to load image Python extension', 'torchvision.io.image'),
    # Of every run that does not paint its predictions, which nobody asked it to.
    ('The draw is False', 'mmseg.engine.hooks.visualization_hook'),
)


def ignore_known_warnings() -> None:
    """For a command, whose process is its own: until the process ends."""
    for message, module in WARNED:
        warnings.filterwarnings('ignore', message, UserWarning, module.replace('.', r'\.') + '$')


@contextmanager
def known_lines_held_back() -> Iterator[None]:
    """What is printed and warned of in here appears, except for the known lines."""
    screen = _Screen(sys.stdout)
    try:
        with redirect_stdout(screen), warnings.catch_warnings():
            ignore_known_warnings()
            yield
    finally:
        screen.flush()


class _Screen(io.TextIOBase):
    """Passes on what is printed, line by line, also to a logger that has kept it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ''

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split('\n')
        for line in lines:
            if line not in PRINTED:
                self._stream.write(f'{line}\n')
        return len(text)

    def flush(self) -> None:
        self._stream.write(self._line)
        self._line = ''
        self._stream.flush()
