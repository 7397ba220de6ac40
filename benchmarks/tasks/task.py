"""Interface of a task: a module with the names in `Task`; it reads data into parts and says how rows become figures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure
from proxytune.errors import InputError, OptionError


class Part(Protocol):
    """Questions of one kind, all asked in the same way."""

    @property
    def name(self) -> str:
        """Unique in the task, and a key of its `MEASURES`."""

    @property
    def formats(self) -> Formats:
        """Format in which roles read its prompts."""

    def __len__(self) -> int:
        """Number of questions."""

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return for each of these questions what its row holds: all that its figures need, as JSON has it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task's work, read and checked, before any model is loaded.

    Attributes:
        parts: In the order in which they are asked.
        settings: Settings besides models that decide the predictions: data by digest, limits, prompts.
        columns: The columns to take where the user names none.
    """

    parts: Sequence[Part]
    settings: Mapping[str, Any]
    columns: Sequence[str] = field(default=())


class Task(Protocol):
    """The names a task's module has."""

    HELP: str
    EXAMPLE: str
    MEASURES: Mapping[str, Sequence[Measure]]

    def add_arguments(self, command: argparse.ArgumentParser) -> None:
        """Add the task's own options."""

    def prepare(self, args: argparse.Namespace) -> Job:
        """Return the work."""


def first(items: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Return the first `limit` items, all of them for None.

    Raises:
        OptionError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}: it must be a whole number of at least 1.")
    return items if limit is None else items[:limit]


def find_file(given: str | None, folder: str | None, names: Sequence[str], *, option: str, data: str) -> Path:
    """Return the file that was given, or the first of `names` (also .gz) in the folder; `data` is for messages.

    Raises:
        InputError: Neither was given, or nothing is there.
    """
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise InputError(f"{given!r} does not exist: name {data} with {option}.")
        return path
    if not folder:
        raise InputError(f"{data}: no part of proxytune, so name the file with {option}, or its folder by --data-dir.")
    root = Path(folder).expanduser()
    existing = next((path for name in names for end in ("", ".gz") if (path := root / f"{name}{end}").is_file()), None)
    if existing is None:
        raise InputError(f"{folder!r} has none of {', '.join(names)}, also gzipped: name the file with {option}.")
    return existing
