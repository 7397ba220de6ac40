"""`timings.jsonl`: how long each chunk's questions took; beside the predictions, which a resumed run must repeat."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs.plan import Chunk
from benchmarks.runs.predictions import read_rows
from proxytune.errors import OutputError

TIMINGS = "timings.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a column's questions of one part took: wall-clock seconds without loading, over `num_questions` timed."""

    seconds: float
    num_questions: int

    @property
    def seconds_per_question(self) -> float:
        """The mean."""
        return self.seconds / self.num_questions


def timed(
    folder: Path, chunk: Chunk, predict: Callable[[], Sequence[Mapping[str, Any]]]
) -> Sequence[Mapping[str, Any]]:
    """Return what `predict` returns for a chunk, and note the seconds that it took in the run's folder.

    Raises:
        OutputError: They cannot be written.
    """
    start = time.perf_counter()
    rows = predict()
    line = {
        "column": chunk.column,
        "part": chunk.part,
        "first": chunk.indices[0],
        "num_questions": len(chunk.indices),
        "seconds": round(time.perf_counter() - start, 6),
    }
    append_timings(folder, [line])
    return rows


def append_timings(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write lines behind those there are.

    Raises:
        OutputError: The disk refuses them.
    """
    path = folder / TIMINGS
    try:
        _cut_torn_line(path)
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """Return the lines there are, each chunk once: of two that a resumed run made the later counts."""
    path = folder / TIMINGS
    if not path.exists():
        return []
    lines = read_rows(path)
    return list({(line["column"], line["part"], line["first"]): line for line in lines}.values())


def costs(folder: Path) -> dict[tuple[str, str], Cost]:
    """Return what each column's questions of each part took, where that is known."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in read_timings(folder):
        found.setdefault((line["column"], line["part"]), []).append(line)
    return {
        key: Cost(
            seconds=sum(line["seconds"] for line in lines), num_questions=sum(line["num_questions"] for line in lines)
        )
        for key, lines in found.items()
    }


def _cut_torn_line(path: Path) -> None:
    """Take away what a killed run left of a line."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(data.rfind(b"\n") + 1)
