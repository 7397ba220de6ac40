"""The extra `rl`: a plain sentence where it is missing, and the library's own error where it is broken."""

from __future__ import annotations

from importlib import import_module

from neft.errors import InputError

_PACKAGES = ("trl", "datasets", "peft")


def require_trl(purpose: str) -> None:
    """Checks that TRL and what it stands on can be imported.

    Raises:
        InputError: one of them is not installed.
        ImportError: one of them is installed and broken.
    """
    for package in _PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise InputError(
                f"{purpose} needs {package}, which is not installed; run `pip install 'proxytune[rl]'`."
            ) from error
