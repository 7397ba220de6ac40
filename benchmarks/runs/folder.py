"""One run's folder: begun, gone on with, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.runs.configuration import NAME as CONFIG
from benchmarks.runs.configuration import Configuration, write_json
from benchmarks.runs.measures import Measure, summarise
from benchmarks.runs.plan import Chunk, chunks_of
from benchmarks.runs.predictions import Predictions, read_rows
from proxytune.errors import OptionError, OutputError

PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"


class RunFolder:
    """A folder with config.json, predictions.jsonl and, once all rows are there, metrics.json."""

    def __init__(self, path: Path, configuration: Configuration) -> None:
        self.path = path
        self.configuration = configuration
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
        if path.exists() and not path.is_dir():
            raise OutputError(f"{str(path)!r} is a file: name a folder for the run with --output.")
        if (path / CONFIG).exists():
            found = Configuration.read(path)
            configuration.require_same(found, path)
            if not is_resumed:
                raise OptionError(f"{str(path)!r} holds this run already: go on with it by --resume.")
            configuration = replace(configuration, sessions=[*found.sessions, *configuration.sessions])
        elif (path / PREDICTIONS).exists():
            raise OutputError(f"{str(path)!r} has {PREDICTIONS} but no {CONFIG}: take another --output folder.")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {str(path)!r}: {error.strerror or error}.") from error
        configuration.write(path)
        return cls(path, configuration)

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Return the run that is in this folder.

        Raises:
            InputError: There is none.
        """
        return cls(path, Configuration.read(path))

    @property
    def num_rows(self) -> int:
        """Rows of the complete run (of this shard)."""
        return sum(len(chunk.indices) for chunk in self.chunks)

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
        if [(row.get("column"), row.get("part"), row.get("index")) for row in rows] != keys:
            raise OutputError(
                f"{str(self.path)!r} has {len(rows)} of {len(keys)} rows, or others: end its run with --resume first."
            )
        return rows

    def measure(
        self, measures: Mapping[str, Sequence[Measure]], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Write metrics.json from these rows (by default the predictions) and return what it holds."""
        seed = self.configuration.settings.get("seed", 0)
        found = {
            "task": self.configuration.task,
            "fingerprint": self.configuration.fingerprint,
            "shard": str(self.configuration.shard),
            **summarise(self.rows() if rows is None else rows, measures, seed=seed),
        }
        write_json(self.path / METRICS, found)
        return found
