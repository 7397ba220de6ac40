"""The message of an interrupt by which nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resumable(unit: str) -> Iterator[None]:
    """Makes an interrupt in the block say that every finished unit is kept."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(
            f"interrupted; every finished {unit} is kept, and the same command goes on."
        ) from interruption
