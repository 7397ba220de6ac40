"""Reading per-question files as they were published: .jsonl or .json (an array of objects), also gzipped."""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxytune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question's fields and where they stand.

    Attributes:
        place: File and line (or number in the array), for messages.
        fields: The object as it was read.
    """

    place: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a field that must be text.

        Raises:
            InputError: The row has no such field, or it is no text.
        """
        value = self._required(name)
        if not isinstance(value, str):
            raise InputError(f"{self.place}: field {name!r} is {value!r}, not text.")
        return value

    def number(self, name: str, *, low: float, high: float) -> float | None:
        """Return a field that must be a number within bounds; None where it is null or NaN, both for missing.

        Raises:
            InputError: The row has no such field, or it is no number from low to high.
        """
        value = self._required(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(
                f"{self.place}: field {name!r} is {value!r}, not a number from {low:g} to {high:g} (or null)."
            )
        return float(value)

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            held = ", ".join(self.fields)
            raise InputError(f"{self.place}: there is no field {name!r}; the row holds {held or 'nothing'}.")
        return self.fields[name]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, at least one.

    Raises:
        InputError: The file cannot be read, holds no row, or one of them is no object; the text names its line.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".json", ".jsonl"):
        raise InputError(f"{path}: a file of predictions is named .jsonl or .json, also .gz.")
    text = read_text(path)
    rows = _json_lines(text, path) if kind == ".jsonl" else _json_array(text, path)
    if not rows:
        raise InputError(f"{path} holds no row: there is nothing to score.")
    return rows


def reject_doubles(rows: Iterable[Row], *, name: str) -> None:
    """Check that no two rows answer the same question.

    Raises:
        InputError: Two do; the text names both places.
    """
    seen: dict[str, str] = {}
    for row in rows:
        question = row.text(name)
        if question in seen:
            raise InputError(f"{row.place}: answers the same {name!r} as {seen[question]}; remove one of them.")
        seen[question] = row.place


def read_text(path: Path) -> str:
    """Return the text of a file, also gzipped.

    Raises:
        InputError: It cannot be read, or is no UTF-8.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: is no UTF-8 ({error.reason}).") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _json_lines(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        location = f"{path}, line {number}"
        if line.strip():
            try:
                rows.append(_row(json.loads(line), location))
            except json.JSONDecodeError as error:
                raise InputError(f"{location}: is no JSON ({error.msg}, column {error.colno}).") from error
    return rows


def _json_array(text: str, path: Path) -> list[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; if it holds one object a line, name it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{path}, line {error.lineno}: is no JSON ({error.msg}, column {error.colno}){hint}."
        ) from error
    if not isinstance(values, list):
        raise InputError(f"{path}, line 1: is no array of objects but {type(values).__name__}.")
    return [_row(value, f"{path}, row {number}") for number, value in enumerate(values, start=1)]


def _row(value: Any, location: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{location}: is no object but {type(value).__name__}.")
    return Row(place=location, fields=value)
