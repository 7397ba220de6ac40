"""`predictions.jsonl`: rows in the order of the plan, each on disk when it is written, gone on with after any end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.runs.plan import Chunk
from proxytune.errors import InputError, OutputError


class Predictions:
    """The rows of one run, appended chunk by chunk. Only one process at a time may hold it.

    Attributes:
        num_done: How many chunks are there whole.
    """

    def __init__(self, path: Path, chunks: Sequence[Chunk]) -> None:
        """Open the file, keep the chunks that are whole, and cut off what a killed run left of the next.

        Raises:
            OutputError: It cannot be written, another process writes it, or a row in it is not the plan's.
        """
        self._path = path
        self._chunks = chunks
        try:
            self._file = path.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise OutputError(f"{str(path)!r} is being written by another process: wait for it, or end it.") from error
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
        try:
            self.num_done, size = self._whole_chunks()
            self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of the next chunk, one by one.

        Raises:
            OutputError: They are not that chunk's rows, or the disk refuses them.
        """
        wanted = self._chunks[self.num_done].keys
        if [_key(row) for row in rows] != wanted:
            raise OutputError(f"the rows are not those of chunk {self.num_done}: {wanted[0]} to {wanted[-1]}.")
        try:
            for row in rows:
                self._write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {str(self._path)!r}: {error.strerror or error}.") from error
        self.num_done += 1

    def close(self) -> None:
        """Close the file and let others have it."""
        self._file.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _whole_chunks(self) -> tuple[int, int]:
        """Return how many chunks are there whole, and the bytes they take."""
        keys = [(key, number) for number, chunk in enumerate(self._chunks) for key in chunk.keys]
        ends = set(accumulate(len(chunk.indices) for chunk in self._chunks))
        num_done, size, position = 0, 0, 0
        for count, (line, row) in enumerate(_lines(self._path), 1):
            if count > len(keys) or _key(row) != keys[count - 1][0]:
                raise OutputError(
                    f"line {count} of {str(self._path)!r} is no row of this run, or not at its place: "
                    "take another --output folder."
                )
            position += len(line)
            if count in ends:
                num_done, size = keys[count - 1][1] + 1, position
        return num_done, size


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a JSON Lines file; a torn last line is left out.

    Raises:
        InputError: It cannot be read.
        OutputError: A line other than the last is no JSON object.
    """
    try:
        return [row for _, row in _lines(path)]
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} does not exist: name the folder of a run.") from error


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    *whole, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield line + b"\n", row
        elif number < len(whole) or torn:
            raise OutputError(f"line {number} of {str(path)!r} is no JSON object: the file was changed; take another.")


def _key(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return row.get("column"), row.get("part"), row.get("index")
