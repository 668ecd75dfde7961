"""Checks of what a user wrote. Every error names the option, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real


def check_number(
    name: str, value: object, low: float, high: float, open_high: bool = False
) -> None:
    """Refuse anything but a real number in ``[low, high]`` (``[low, high)`` if ``open_high``)."""
    allowed = f'a number in [{low:g}, {high:g}{")" if open_high else "]"}'
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name}={value!r}: expected {allowed}, got {type(value).__name__}')
    if not low <= value <= high or (open_high and value == high):
        raise ValueError(f'{name}={value!r}: expected {allowed}')


def check_integer(name: str, value: object, low: int) -> None:
    """Refuse anything but an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f'{name}={value!r}: expected an integer >= {low}, got {type(value).__name__}'
        )
    if value < low:
        raise ValueError(f'{name}={value!r}: expected an integer >= {low}')


def check_bool(name: str, value: object) -> None:
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f'{name}={value!r}: expected True or False, got {type(value).__name__}')


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of ``choices``; a near miss is named."""
    choices = tuple(choices)
    if value not in choices:
        allowed = ', '.join(repr(choice) for choice in choices)
        raise ValueError(f'{name}={value!r}: expected one of {allowed}{_hint(value, choices)}')


def check_keys(name: str, options: object, allowed: Iterable[str]) -> None:
    """Refuse a dict of options with a key that is not allowed; the likely one is named."""
    allowed = tuple(allowed)
    if not isinstance(options, dict):
        raise TypeError(f'{name}={options!r}: expected a dict, got {type(options).__name__}')
    for key in options:
        if key not in allowed:
            raise ValueError(
                f'{name} has no option {key!r}{_hint(key, allowed)}; it knows {", ".join(allowed)}'
            )


def _hint(value: object, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f' (did you mean {near[0]!r}?)' if near else ''
