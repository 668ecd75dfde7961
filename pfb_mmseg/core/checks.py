"""Checks of options. Every error names the option, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse anything but a real number from ``low`` to ``high``, where an open end is excluded."""
    allowed = f'a number in {"(" if open_low else "["}{low:g}, {high:g}{")" if open_high else "]"}'
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name}={value!r}: expected {allowed}, got {type(value).__name__}')
    at_open_end = (open_low and value == low) or (open_high and value == high)
    if not low <= value <= high or at_open_end:
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
    """Refuse a value that is not one of ``choices``, and suggest the most similar of them."""
    choices = tuple(choices)
    if value not in choices:
        allowed = ', '.join(repr(choice) for choice in choices)
        raise ValueError(f'{name}={value!r}: expected one of {allowed}{_hint(value, choices)}')


def check_dict(name: str, value: object) -> None:
    """Refuse anything but a dict."""
    if not isinstance(value, dict):
        raise TypeError(f'{name}={value!r}: expected a dict, got {type(value).__name__}')


def check_sizes(name: str, value: object, num: int) -> None:
    """Refuse anything but a tuple or list of ``num`` integers of at least 1."""
    allowed = f'{num} integers >= 1'
    if not isinstance(value, (tuple, list)):
        raise TypeError(f'{name}={value!r}: expected {allowed}, got {type(value).__name__}')
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) and v >= 1 for v in value)
    if len(value) != num or not whole:
        raise ValueError(f'{name}={value!r}: expected {allowed}')


def check_dim(dim: int, num_channels: int) -> None:
    """Refuse a representation longer than the number of channels that it is averaged from."""
    if dim > num_channels:
        raise ValueError(
            f'dim={dim} is more than the {num_channels} channels at the blocking point; '
            f"set criterion=dict(type='rare', estimator=dict(dim={num_channels})) or less, or "
            'leave dim out'
        )


def check_keys(name: str, options: object, allowed: Iterable[str]) -> None:
    """Refuse a dict with a key that is not allowed, and suggest the most similar one."""
    allowed = tuple(allowed)
    check_dict(name, options)
    for key in options:
        if key not in allowed:
            raise ValueError(
                f'{name} has no option {key!r}{_hint(key, allowed)}; it knows {", ".join(allowed)}'
            )


def _hint(value: object, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f' (did you mean {near[0]!r}?)' if near else ''
