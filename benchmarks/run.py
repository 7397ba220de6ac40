"""One run, one folder: config.json, predictions.jsonl, timings.jsonl, and metrics.json once all rows are there.

A run's order is its columns, in each its parts, in each its questions by chunks; a shard takes every n-th chunk.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.files import JsonLines, append_rows, differences, make_folder, read_rows, write_json
from benchmarks.measures import Measure, summarise
from proxytune.errors import InputError, OptionError, OutputError

CONFIG = "config.json"
PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
TIMINGS = "timings.jsonl"

_KEY = ("column", "part", "index")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The `number`-th of `total` equal shares of a run, counted from 1."""

    number: int = 1
    total: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise OptionError(f"shard is {self.number}/{self.total}: write i/n with i from 1 to n, as in 2/4.")

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `i/n` means.

        >>> Shard.parse("2/4")
        Shard(number=2, total=4)

        Raises:
            OptionError: It is not of that form.
        """
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal()):
            raise OptionError(f"shard is {text!r}: write i/n with i from 1 to n, as in 2/4.")
        return cls(number=int(number), total=int(total))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Questions of one part that one column answers in one call."""

    column: str
    part: str
    indices: tuple[int, ...]

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Column, part and index of each row."""
        return [(self.column, self.part, index) for index in self.indices]


def chunks_of(
    columns: Sequence[str], sizes: Mapping[str, int], chunk_size: int, shard: Shard | None = None
) -> list[Chunk]:
    """Return a run's chunks in their order; `sizes` has the number of questions of each part.

    A shard takes every n-th chunk undivided, so that batches, and with them the last digits of log-probabilities, are
    those of the run that was not divided.
    """
    if chunk_size < 1:
        raise OptionError(f"chunk_size is {chunk_size}: it must be a whole number of at least 1.")
    shard = shard or Shard()
    chunks = [
        Chunk(column=column, part=part, indices=tuple(range(start, min(start + chunk_size, size))))
        for column in columns
        for part, size in sizes.items()
        for start in range(0, size, chunk_size)
    ]
    return chunks[shard.number - 1 :: shard.total]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Settings that decide a run's predictions.

    Attributes:
        task: Its name.
        settings: Everything else, as JSON has it: data, models, α, formats, dtype, limits, batch size, seed.
        columns: Names, in order.
        sizes: Number of questions of each part, in order.
        chunk_size: Questions in one call.
        shard: Share this folder holds.
        sessions: Environment of each process that worked on it; not part of the fingerprint.
    """

    task: str
    settings: Mapping[str, Any]
    columns: Sequence[str]
    sizes: Mapping[str, int]
    chunk_size: int
    shard: Shard = Shard()
    sessions: Sequence[Mapping[str, Any]] = ()

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that shards of one run share."""
        asked = {
            "task": self.task,
            "columns": list(self.columns),
            "sizes": dict(self.sizes),
            "chunk_size": self.chunk_size,
            "settings": self.settings,
        }
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what shards of one run share."""
        return hashlib.sha256(json.dumps(self.shared, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return what config.json holds."""
        run = {"shard": str(self.shard), "fingerprint": self.fingerprint, "sessions": list(self.sessions)}
        return {**self.shared, **run}

    def write(self, folder: Path) -> None:
        """Put config.json into the folder."""
        write_json(folder / CONFIG, self.as_dict())

    @classmethod
    def read(cls, folder: Path) -> Configuration:
        """Return what config.json says.

        Raises:
            InputError: There is none, or it is not one.
        """
        path = folder / CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            fields = ("task", "settings", "columns", "sizes", "chunk_size", "sessions")
            return cls(**{name: config[name] for name in fields}, shard=Shard.parse(config["shard"]))
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}; name the folder of a run.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{str(path)!r} is not the config of a run ({error}): name the folder of a run."
            ) from error

    def require_same(self, other: Configuration, where: Path) -> None:
        """Raise OptionError naming what differs unless `other`, found in `where`, asks for the same, shard included."""
        mine, theirs = ({**one.shared, "shard": str(one.shard)} for one in (self, other))
        different = differences(theirs, mine)
        if different:
            raise OptionError(
                f"{str(where)!r} holds a run of another configuration: {'; '.join(different[:4])}. "
                "Give the same options, or take another --output folder."
            )


class RunFolder:
    """A run's folder: begun, gone on with, or refused."""

    def __init__(self, path: Path, configuration: Configuration, made: Sequence[Path] | None = None) -> None:
        """`made` are the folders that were made for it, the innermost first; None for a run that was there."""
        self.path = path
        self.configuration = configuration
        self._made = made
        self.chunks: list[Chunk] = chunks_of(
            configuration.columns, configuration.sizes, configuration.chunk_size, configuration.shard
        )

    @classmethod
    def open(cls, path: Path, configuration: Configuration, *, is_resumed: bool) -> RunFolder:
        """Return the run in this folder, begun now or gone on with; its config.json then knows this session too.

        Raises:
            OptionError: A run is there and `is_resumed` is not set, or it is of another configuration.
            OutputError: The folder cannot be written.
        """
        sessions = cls.check(path, configuration, is_resumed=is_resumed)
        configuration = replace(configuration, sessions=[*sessions, *configuration.sessions])
        is_new = not (path / CONFIG).exists()
        made = [folder for folder in (path, *path.parents) if not folder.exists()] if is_new else None
        run = cls(make_folder(path), configuration, made)
        configuration.write(path)
        return run

    @staticmethod
    def check(path: Path, configuration: Configuration, *, is_resumed: bool) -> Sequence[Mapping[str, Any]]:
        """Return the sessions of the run that is there already; nothing is written.

        Raises:
            OptionError: As in `open`.
            OutputError: The folder is a file, or holds rows of an unknown run.
        """
        if path.exists() and not path.is_dir():
            raise OutputError(f"{str(path)!r} is a file: name a folder for the run with --output.")
        if (path / CONFIG).exists():
            begun = Configuration.read(path)
            configuration.require_same(begun, path)
            if not is_resumed:
                raise OptionError(f"{str(path)!r} holds this run already: go on with it by --resume.")
            return begun.sessions
        if (path / PREDICTIONS).exists():
            raise OutputError(f"{str(path)!r} has {PREDICTIONS} but no {CONFIG}: take another --output folder.")
        return ()

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Return the run that is in this folder.

        Raises:
            InputError: There is none.
        """
        return cls(path, Configuration.read(path))

    def predictions(self) -> Predictions:
        """Open the predictions for writing."""
        return Predictions(self.path / PREDICTIONS, self.chunks)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows.

        Raises:
            OutputError: Some are missing yet.
        """
        rows = read_rows(self.path / PREDICTIONS)
        keys = [key for chunk in self.chunks for key in chunk.keys]
        if [row_key(row) for row in rows] != keys:
            raise OutputError(
                f"{str(self.path)!r} has {len(rows)} of {len(keys)} rows, or others: end its run with --resume first."
            )
        return rows

    def predict_missing(self, predict: Callable[[Chunk], Rows], *, has_progress: bool) -> None:
        """Predict and store the chunks that are not there yet, and how long each took.

        `predict` returns the fields of a chunk's rows, in order. The run is taken away again
        where it fails before the first row of a new run.
        """
        try:
            self._predict_missing(predict, has_progress=has_progress)
        except BaseException:
            if self._made is not None and not (self.path / TIMINGS).exists():
                for name in (CONFIG, PREDICTIONS):
                    (self.path / name).unlink(missing_ok=True)
                with suppress(OSError):  # something else lies there
                    for folder in self._made:
                        folder.rmdir()
            raise

    def _predict_missing(self, predict: Callable[[Chunk], Rows], *, has_progress: bool) -> None:
        num_rows = sum(len(chunk.indices) for chunk in self.chunks)
        with self.predictions() as predictions:
            done = sum(len(chunk.indices) for chunk in self.chunks[: predictions.num_done])
            with tqdm(total=num_rows, initial=done, disable=not has_progress, unit="row") as bar:
                for chunk in self.chunks[predictions.num_done :]:
                    bar.set_description(f"{chunk.column} {chunk.part}")
                    start = time.perf_counter()
                    fields = predict(chunk)
                    append_rows(self.path / TIMINGS, [_timing(chunk, time.perf_counter() - start)])
                    keys = [dict(zip(_KEY, key, strict=True)) for key in chunk.keys]
                    predictions.append([{**key, **row} for key, row in zip(keys, fields, strict=True)])
                    bar.update(len(keys))

    def measure(self, measures: Mapping[str, Sequence[Measure]], rows: Rows | None = None) -> dict[str, Any]:
        """Write metrics.json from these rows (by default the predictions) and return what it holds."""
        seed = self.configuration.settings.get("seed", 0)
        metrics = {
            "task": self.configuration.task,
            "fingerprint": self.configuration.fingerprint,
            "shard": str(self.configuration.shard),
            **summarise(self.rows() if rows is None else rows, measures, seed=seed),
        }
        write_json(self.path / METRICS, metrics)
        return metrics


class Predictions:
    """The rows of one run, appended chunk by chunk by one process at a time.

    Attributes:
        num_done: Number of complete chunks.
    """

    def __init__(self, path: Path, chunks: Sequence[Chunk]) -> None:
        """Open the file, keep the complete chunks, and cut off what a killed run left of the next.

        Raises:
            OutputError: It cannot be written, another process writes it, or a row in it is not the plan's.
        """
        self._chunks = chunks
        self._lines = JsonLines(path)
        try:
            self.num_done, num_rows = self._complete(path)
            self._lines.keep(num_rows)
        except BaseException:
            self._lines.close()
            raise

    def append(self, rows: Rows) -> None:
        """Write the rows of the next chunk.

        Raises:
            OutputError: They are not that chunk's rows, or the disk refuses them.
        """
        keys = self._chunks[self.num_done].keys
        if [row_key(row) for row in rows] != keys:
            raise OutputError(f"the rows are not those of chunk {self.num_done}: {keys[0]} to {keys[-1]}.")
        self._lines.append(rows)
        self.num_done += 1

    def close(self) -> None:
        """Close the file and let others have it."""
        self._lines.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _complete(self, path: Path) -> tuple[int, int]:
        """Return the number of complete chunks and of their rows."""
        keys = [key for chunk in self._chunks for key in chunk.keys]
        rows = read_rows(path)
        for number, row in enumerate(rows, 1):
            if number > len(keys) or row_key(row) != keys[number - 1]:
                raise OutputError(
                    f"line {number} of {str(path)!r} is no row of this run, or out of order: "
                    "take another --output folder."
                )
        num_done = num_rows = 0
        for chunk in self._chunks:
            if num_rows + len(chunk.indices) > len(rows):
                break
            num_done, num_rows = num_done + 1, num_rows + len(chunk.indices)
        return num_done, num_rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Wall-clock seconds without loading over `num_questions` of a column's part."""

    seconds: float
    num_questions: int

    @property
    def seconds_per_question(self) -> float:
        """The mean."""
        return self.seconds / self.num_questions


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """Return the lines there are, each chunk once: of two that a resumed run made the later counts."""
    lines = read_rows(folder / TIMINGS) if (folder / TIMINGS).exists() else []
    return list({(line["column"], line["part"], line["first"]): line for line in lines}.values())


def costs(folder: Path) -> dict[tuple[str, str], Cost]:
    """Return what each column's questions of each part took, where that is known."""
    totals: dict[tuple[str, str], Cost] = {}
    for line in read_timings(folder):
        key = line["column"], line["part"]
        cost = totals.get(key, Cost(seconds=0, num_questions=0))
        totals[key] = Cost(
            seconds=cost.seconds + line["seconds"], num_questions=cost.num_questions + line["num_questions"]
        )
    return totals


def row_key(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return column, part and index."""
    return row.get("column"), row.get("part"), row.get("index")


def _timing(chunk: Chunk, seconds: float) -> dict[str, Any]:
    return {
        "column": chunk.column,
        "part": chunk.part,
        "first": chunk.indices[0],
        "num_questions": len(chunk.indices),
        "seconds": round(seconds, 6),
    }
