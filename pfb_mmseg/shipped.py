"""The configs that come with this package: in a checkout beside it, in a wheel inside of it."""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')


def list_configs() -> dict[str, Path]:
    """Those that can be trained, by name; none where the package came without them."""
    for place in _PLACES:
        if place.is_dir():
            paths = sorted(place.rglob('*.py'))
            return {path.stem: path for path in paths if '_base_' not in path.parts}
    return {}


def find_config(name: str) -> Path:
    """The file that a user means.

    Args:
        name: path of a file, or the name of a config that comes with this package, with or without
            ``.py``.

    Raises:
        ValueError: it is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known, stem = list_configs(), name.removesuffix('.py')
    if stem in known:
        return known[stem]
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f' (did you mean {near[0]}?)' if near else ''
    raise ValueError(
        f'config {name!r} is not a file, and none of that name comes with pfb_mmseg{hint}'
    )
