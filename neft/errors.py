"""Every error neft raises on purpose; each is also the builtin it stands for."""

from __future__ import annotations


class NeftError(Exception):
    """Root of the tree: catch it to catch everything neft raises on purpose."""


class InputError(NeftError, ValueError):
    """The user gave something that cannot be used: an option, a model, a folder."""


class DataError(InputError):
    """A data file or one of its rows cannot be used; the message names the file and the row."""


class OutputError(InputError):
    """The output folder cannot be written without destroying something."""


class NoiseError(NeftError, RuntimeError):
    """The noise cannot be attached to this model, or cannot know the lengths of its documents."""


class DivergenceError(NeftError, ArithmeticError):
    """The training loss is no longer a finite number."""
