"""`annotations.jsonl`: the judge's verdict on each answer of a run, on disk as soon as it is there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.files import JsonLines, read_rows
from benchmarks.tasks.alpacaeval import worker
from benchmarks.tasks.alpacaeval.judge import MARKS, Judge
from benchmarks.tasks.alpacaeval.process import last_line, shortened, worker_lines
from benchmarks.tasks.alpacaeval.reference import Reference
from proxytune.errors import DependencyError

NAME = "annotations.jsonl"

Key = tuple[str, int]


def annotate_missing(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    reference: Reference,
    judge: Judge,
    *,
    is_retried: bool = False,
    has_progress: bool = False,
) -> None:
    """Judge the rows of a run that have no verdict in `folder` yet; `is_retried` asks again where the judge failed.

    Raises:
        DependencyError: The process that asks by the package cannot run.
        OutputError: Another process writes here, or the disk refuses.
    """
    known = read_annotations(folder)
    todo = [row for row in rows if _is_missing(known.get((row["column"], row["index"])), is_retried=is_retried)]
    with JsonLines(folder / NAME) as lines, tqdm(total=len(todo), disable=not has_progress, unit="verdict") as bar:
        lines.keep()
        tasks = []
        for row in todo:
            task = _task(row, reference)
            if (obstacle := _obstacle(row, task)) is None:
                tasks.append(task)
                continue
            lines.append([{**_key(task), "preference": None, "error": obstacle}])
            bar.update()
        for answer in _answers(tasks, judge, folder):
            lines.append([judge.without_key(_verdict(answer))])
            bar.update()


def read_annotations(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the verdicts there are by column and index; of two on the same answer the later counts."""
    path = folder / NAME
    if not path.exists():
        return {}
    return {(row["column"], row["index"]): row for row in read_rows(path)}


def _is_missing(known: Mapping[str, Any] | None, *, is_retried: bool) -> bool:
    return known is None or (is_retried and known["preference"] is None)


def _task(row: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
    shared = {"dataset": row["dataset"], "instruction": row["instruction"]}
    return {
        "id": [row["column"], row["index"]],
        "reference": {**shared, "output": reference.outputs[row["instruction"]], "generator": reference.generator},
        "output": {**shared, "output": row["output"], "generator": row["column"]},
    }


def _key(task: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("column", "index"), task["id"], strict=True))


def _obstacle(row: Mapping[str, Any], task: Mapping[str, Any]) -> str | None:
    """Return why the judge cannot be asked about a row, if it cannot."""
    if "error" in row:
        return f"there is no answer: {shortened(row['error'])}"
    texts = (row["instruction"], task["reference"]["output"], row["output"])
    mark = next((mark for mark in MARKS if any(mark in text for text in texts)), None)
    return None if mark is None else f"a text holds {mark!r}, which means something in the judge's prompt"


def _verdict(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line for what the worker answered; whatever is no preference from 1 to 2 is missing."""
    line = {**_key(answer), "preference": None}
    if "error" in answer:
        return {**line, "error": shortened(answer["error"])}
    annotation = answer["annotation"]
    preference = annotation.get("preference")
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not 1 <= preference <= 2:
        return {**line, "error": "the judge's answer, if there was one, holds no verdict"}
    return {**line, "preference": float(preference), "annotation": annotation}


def _answers(tasks: Sequence[Mapping[str, Any]], judge: Judge, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the worker's answers as they come."""
    if not tasks:
        return
    config = str(judge.write_configuration(folder))
    settings = {"annotators_config": config, "max_concurrency": judge.max_concurrency}
    asked = folder / "annotator" / "rows.jsonl"
    asked.write_text("".join(f"{json.dumps(line)}\n" for line in (settings, *tasks)), encoding="utf-8")
    # A file without a name: a server may have repeated the key in what is told.
    with tempfile.TemporaryFile() as told:
        num_answers = 0
        for line in worker_lines(worker.__file__, asked, told, judge.environment()):
            num_answers += 1
            yield json.loads(line)
        if num_answers < len(tasks):
            raise DependencyError(
                f"alpaca-eval's process ended after {num_answers} of {len(tasks)} verdicts: "
                f"{judge.without_key(last_line(told))}. What is judged is kept: the same command goes on."
            )
