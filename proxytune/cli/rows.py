"""Rows of output as lines: made from results, put in order, and read back to go on with an interrupted run."""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxytune.errors import OutputError


@dataclass(frozen=True)
class Line:
    """One line of output, its line end included, and where it belongs.

    `sequence` is its number among the prompt's `num_sequences`; a line that is not `is_final` tells an error, and a
    run that is gone on with makes it again.
    """

    index: int
    sequence: int
    num_sequences: int
    text: str
    is_final: bool = True


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Content of the output when it is complete.

    Attributes:
        given: For each prompt the fields its rows repeat: prompt, id, alpha, and its first row's seed if there is one.
        num_sequences: Rows per prompt.
    """

    given: Sequence[Mapping[str, Any]]
    num_sequences: int = 1

    @property
    def num_lines(self) -> int:
        """Number of rows."""
        return len(self.given) * self.num_sequences

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Return why a row cannot be one of these, None if it can."""
        index, sequence = row.get("index"), row.get("sequence", 0)
        if type(index) is not int or type(sequence) is not int or index < 0 or sequence < 0:
            return "is no row of this command"
        if index >= len(self.given):
            return f"belongs to prompt {index}, and there are only {len(self.given)} prompts"
        if sequence >= self.num_sequences:
            return f"is answer {sequence} of a prompt, and only {self.num_sequences} are asked for"
        expected = dict(self.given[index])
        if "seed" in expected:
            expected["seed"] += sequence
        wrong = next((key for key, value in expected.items() if row.get(key) != value), None)
        return None if wrong is None else f"has another {wrong} than prompt {index}"


def json_line(row: Mapping[str, Any], num_sequences: int = 1) -> Line:
    """Return the JSONL line of a row."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    return Line(row["index"], row.get("sequence", 0), num_sequences, text, is_final="error" not in row)


def finite(value: float) -> float | None:
    """Return a log-probability as JSON has it: minus infinity (an impossible token) is null."""
    return value if math.isfinite(value) else None


def in_order() -> Generator[list[Line], Sequence[Line], None]:
    """Take lines in any order by `send`, and return those whose turn has come."""
    waiting: dict[int, Line] = {}
    turn = 0
    ready: list[Line] = []
    while True:
        for line in (yield ready):
            waiting[line.index * line.num_sequences + line.sequence] = line
        ready = []
        while turn in waiting:
            ready.append(waiting.pop(turn))
            turn += 1


def existing_lines(path: Path, expected: Expected) -> tuple[list[Line], bool]:
    """Return the lines of an output file, each row once, and whether the file holds just these.

    It holds more where the last line is half written, or where two runs wrote the same rows.

    Raises:
        OutputError: A line is not one of the rows expected; the text names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r} to go on with it: {error.strerror or error}.") from error
    *complete, torn = data.split(b"\n")
    lines: dict[tuple[int, int], Line] = {}
    for number, line in enumerate(complete, 1):
        row = _parsed(line)
        problem = expected.problem(row)
        if problem is not None:
            raise OutputError(
                f"line {number} of {str(path)!r} {problem}: resume with the prompts and options that made the file, "
                "or replace it by --overwrite."
            )
        key = (row["index"], row.get("sequence", 0))
        lines[key] = Line(*key, expected.num_sequences, line.decode() + "\n", is_final="error" not in row)
    return list(lines.values()), not torn and len(lines) == len(complete)


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
