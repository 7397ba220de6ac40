"""Packages that only the analyses need, imported when they do."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from neft.errors import InputError


def optional(module: str, what: str) -> Any:
    """Returns a module of the extra `neft`.

    Raises:
        InputError: its package is not installed (a package that is there and broken raises what it raises).
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise InputError(f"{what} needs the package {package}: pip install 'proxytune[neft]'.") from error
