"""Working through a run's plan: what is missing is predicted, chunk by chunk, and stored at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.runs.folder import RunFolder
from benchmarks.runs.plan import Chunk

Predict = Callable[[Chunk], Sequence[Mapping[str, Any]]]


def run_missing(run: RunFolder, predict: Predict, *, has_progress: bool) -> None:
    """Predict and store the chunks that are not there yet; `predict` returns the fields of a chunk's rows, in order."""
    with run.predictions() as predictions:
        done = sum(len(chunk.indices) for chunk in run.chunks[: predictions.num_done])
        with tqdm(total=run.num_rows, initial=done, disable=not has_progress, unit="row") as bar:
            for chunk in run.chunks[predictions.num_done :]:
                bar.set_description(f"{chunk.column} {chunk.part}")
                fields = predict(chunk)
                keys = [dict(zip(("column", "part", "index"), key, strict=True)) for key in chunk.keys]
                predictions.append([{**key, **own} for key, own in zip(keys, fields, strict=True)])
                bar.update(len(keys))
