"""JSON lines and JSON arrays as rows, read piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from neft.errors import DataError

NumberedRow = tuple[int, dict[str, Any]]

_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_PIECE = 1 << 20


def json_lines(stream: BinaryIO, name: str) -> Iterator[NumberedRow]:
    """Yields the objects of a JSON-lines file; blank lines count but give nothing."""
    # Bytes are cut at newlines only; text would also be cut at separators that JSON allows inside strings.
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, row {number} is not UTF-8 at its byte {error.start}; convert it.") from error
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, row {number} is not JSON: {error.msg} at column {error.colno}.") from error
        except RecursionError as error:
            raise DataError(f"{name}, row {number} is nested too deeply.") from error
        yield number, _object(row, number, name, "an object per line")


def json_array(stream: BinaryIO, name: str) -> Iterator[NumberedRow]:
    """Yields the objects of a JSON array, one in memory at a time, or of the array `data` of a JSON object."""
    window = _Window(stream, name)
    if window.peek() == "{":
        yield from _data_of_object(window, name)
        return
    if window.take() != "[":
        raise DataError(f'{name} does not begin with a JSON array; give [...] or {{"data": [...]}}.')
    if window.peek() == "]":
        window.take()
    else:
        yield from _elements(window, name)
    if window.peek():
        raise DataError(f"{name} goes on after the end of its array.")


def _elements(window: _Window, name: str) -> Iterator[NumberedRow]:
    while True:
        window.num_rows += 1
        number = window.num_rows
        row = _object(window.value(), number, name, "an array of objects")
        yield number, row
        mark = window.take()
        if mark == "]":
            return
        if mark != ",":
            following = repr(mark) if mark else "the end of the file"
            raise DataError(f"{name}, row {number} is followed by {following}, not by a comma or the array's end.")


def _data_of_object(window: _Window, name: str) -> Iterator[NumberedRow]:
    text = window.rest()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one object per line is named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{hint}."
        ) from error
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply.") from error
    rows = value.get("data")
    if not isinstance(rows, list):
        raise DataError(f'{name} is a JSON object without an array "data"; give [...] or {{"data": [...]}}.')
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, number, name, "an array of objects")


def _object(row: Any, number: int, name: str, expected: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{name}, row {number} is a JSON {type(row).__name__}; give {expected}.")
    return row


class _Window:
    """The part of a JSON text that is read but not yet used."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._characters = codecs.getincrementaldecoder("utf-8-sig")()
        self._values = json.JSONDecoder()
        self._name = name
        self._text = ""
        self._position = 0
        self.num_rows = 0

    def peek(self) -> str:
        """Returns the next character that is not space; nothing at the end."""
        while (match := _NOT_SPACE.search(self._text, self._position)) is None:
            self._position = len(self._text)
            if not self._read_on():
                return ""
        self._position = match.start()
        return match[0]

    def take(self) -> str:
        """Returns the next character that is not space, and steps over it."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self) -> Any:
        """Returns the next JSON value, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, self._position = self._values.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError as error:
                if not self._read_on():
                    raise DataError(f"{self._name}, row {self.num_rows} is not JSON: {error.msg}.") from error
            except RecursionError as error:
                raise DataError(f"{self._name}, row {self.num_rows} is nested too deeply.") from error

    def rest(self) -> str:
        """Returns everything that is left."""
        while self._read_on():
            pass
        return self._text[self._position :]

    def _read_on(self) -> bool:
        # As much again as is waiting, so that a long value is not tried too often.
        waiting = self._text[self._position :]
        piece = self._stream.read(max(_PIECE, len(waiting)))
        try:
            self._text, self._position = waiting + self._characters.decode(piece, final=not piece), 0
        except UnicodeDecodeError as error:
            raise DataError(f"{self._name} is not UTF-8 somewhere after row {self.num_rows}; convert it.") from error
        return bool(piece)
