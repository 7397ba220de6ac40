"""Checks of options; a wrong value raises `InputError` with the option's name, the value and the limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from neft.errors import InputError


def check_at_least(config: Any, limit: float, *names: str) -> None:
    """Checks that options are numbers of the limit's type (an int is also a float) and not below it, or None."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        _check_number(name, value, is_integer=isinstance(limit, int))
        if value < limit:
            raise InputError(f"{name} is {value}; give at least {limit:g}.")


def check_positive(config: Any, *names: str) -> None:
    """Checks that options are numbers above 0, or None."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        _check_number(name, value, is_integer=False)
        if value <= 0:
            raise InputError(f"{name} is {value}; give more than 0.")


def check_shares(config: Any, *names: str) -> None:
    """Checks that options are in [0, 1)."""
    check_at_least(config, 0.0, *names)
    for name in names:
        value = getattr(config, name)
        if value >= 1:
            raise InputError(f"{name} is {value}; it is a share, give less than 1.")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Checks that an option is one of several words."""
    value = getattr(config, name)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def json_value(value: object) -> object:
    """Returns an option as a JSON value."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _check_number(name: str, value: object, *, is_integer: bool) -> None:
    types: tuple[type, ...] = (int,) if is_integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, types):
        raise InputError(f"{name} is {value!r}; give {'a whole' if is_integer else 'a'} number.")
    if not math.isfinite(float(value)):  # type: ignore[arg-type]
        raise InputError(f"{name} is {value}; give a finite number.")
