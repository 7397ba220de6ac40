"""JSON and JSON Lines on disk: written in one step or row by row, and readable after any end of the writer."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from proxytune.errors import InputError, OutputError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a killed process leaves the old one or the new one.

    Raises:
        OutputError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        scratch.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: It cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r} holds no JSON object: it was changed.")
    return value


def make_folder(path: Path) -> Path:
    """Return the folder, made if it is not there.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {str(path)!r}: {error.strerror or error}.") from error
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file; a torn last line is left out.

    Raises:
        InputError: It does not exist.
        OutputError: A line other than the last is no JSON object.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} does not exist: name the folder of a run.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines) or torn:
            raise OutputError(f"line {number} of {str(path)!r} is no JSON object: the file was changed; take another.")
    return rows


class JsonLines:
    """A JSON Lines file that one process at a time appends to, each row on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is not there.

        Raises:
            OutputError: It cannot be written, or another process writes it.
        """
        self._path = path
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise OutputError(f"{str(path)!r} is being written by another process: wait for it, or end it.") from error

    def keep(self, num_rows: int | None = None) -> None:
        """Cut the file behind so many rows, or behind its last whole line: what a killed process left of more."""
        lines = self._path.read_bytes().split(b"\n")[:-1]
        self._file.truncate(sum(len(line) + 1 for line in lines[:num_rows]))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows.

        Raises:
            OutputError: The disk refuses them.
        """
        try:
            for row in rows:
                rest = memoryview(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                while rest:
                    rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {str(self._path)!r}: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file, for others to write."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows behind the last whole line of a file.

    Raises:
        OutputError: As in `JsonLines`.
    """
    with JsonLines(path) as lines:
        lines.keep()
        lines.append(rows)


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Return what differs between two JSON values, one text per key.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    ['a.b is 1 there and 2 here', 'c is absent there and 3 here']
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            text
            for key in dict.fromkeys([*first, *second])
            for text in differences(first.get(key, ...), second.get(key, ...), f"{name}.{key}" if name else key)
        ]
    return [] if first == second else [f"{name} is {_shown(first)} there and {_shown(second)} here"]


def _shown(value: Any) -> str:
    text = "absent" if value is ... else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
