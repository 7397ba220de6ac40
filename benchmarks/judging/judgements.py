"""`judgements.jsonl` in a run's folder: one line per answer and quality, and rows of the run with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.files import JsonLines, read_json, read_rows, write_json
from benchmarks.judging.judge import QUESTIONS, Judge
from benchmarks.run import RunFolder
from benchmarks.scoring.truthfulqa_open import both, is_yes
from benchmarks.tasks.truthfulqa_paper import OPEN
from proxytune.errors import InputError, OptionError

JUDGEMENTS = "judgements.jsonl"
JUDGES = "judges.json"
_FIELDS = {"truth": "GPT-true", "info": "GPT-info"}

Key = tuple[str, int, str]


def judge_missing(
    run: RunFolder, judges: Mapping[str, Judge], *, is_retried: bool = False, has_progress: bool = False
) -> None:
    """Judge the open answers that have no judgement yet by each of `judges`; `is_retried` also those that failed.

    Raises:
        InputError: The run has no open answers.
        OptionError: Other judges began with this folder.
    """
    rows = [row for row in run.rows() if row["part"] == OPEN]
    if not rows:
        raise InputError(f"{str(run.path)!r} has no open answers: judging is for runs with the part {OPEN!r}.")
    _require_same_judges(run.path / JUDGES, {name: judge.describe() for name, judge in judges.items()})
    known = _known(run.path)
    done = {key for key, row in known.items() if row["probability"] is not None or not is_retried}
    todo = {name: [row for row in rows if (row["column"], row["index"], name) not in done] for name in judges}
    total = sum(len(missing) for missing in todo.values())
    with (
        JsonLines(run.path / JUDGEMENTS) as lines,
        tqdm(total=total, disable=not has_progress, unit="answer") as bar,
    ):
        lines.keep()
        for name, judge in judges.items():
            bar.set_description(f"judge {name}")
            for batch in _batches(todo[name], judge.batch_size):
                lines.append(_lines(name, judge, batch))
                bar.update(len(batch))
            judge.close()


def judged_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Return the run's rows, open answers with the probabilities and verdicts there are; what is missing is null."""
    known = _known(run.path)
    return [_with_verdicts(row, known) if known and row["part"] == OPEN else row for row in run.rows()]


def _with_verdicts(row: Mapping[str, Any], known: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
    probabilities = {name: known.get((row["column"], row["index"], name), {}).get("probability") for name in QUESTIONS}
    verdicts = {name: is_yes(probability) for name, probability in probabilities.items()}
    return {
        **row,
        **{_FIELDS[name]: probability for name, probability in probabilities.items()},
        **{f"{_FIELDS[name]} acc": verdict for name, verdict in verdicts.items()},
        "GPT-true-info acc": both(verdicts["truth"], verdicts["info"]),
    }


def _known(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the judgements there are; of two on the same answer the later counts."""
    path = folder / JUDGEMENTS
    if not path.exists():
        return {}
    return {(row["column"], row["index"], row["judge"]): row for row in read_rows(path)}


def _lines(name: str, judge: Judge, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    prompts = [QUESTIONS[name].format(question=row["Question"].strip(), answer=row["output"]) for row in rows]
    verdicts = judge.judge(prompts)
    return [
        {"column": row["column"], "index": row["index"], "judge": name, "probability": verdict.probability}
        | ({} if verdict.error is None else {"error": verdict.error})
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _require_same_judges(path: Path, judges: Mapping[str, Any]) -> None:
    known = read_json(path) if path.exists() else {}
    changed = next((name for name, description in judges.items() if known.get(name, description) != description), None)
    if changed is not None:
        raise OptionError(
            f"{str(path.parent)!r} has judgements of {changed} by {json.dumps(known[changed])}: name that judge again, "
            f"or take {JUDGEMENTS} and {JUDGES} away."
        )
    write_json(path, {**known, **judges})
