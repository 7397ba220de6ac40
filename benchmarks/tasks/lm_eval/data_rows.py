"""Rows of the benchmarks' own files in the form in which the hub has them, which is what the harness's tasks read."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scoring.rows import read_rows
from proxytune.errors import InputError

Fields = Mapping[str, Any]

_LETTERS = "ABCD"
_HELLASWAG = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "source_id", "split", "split_type")


def arc_rows(path: Path) -> list[dict[str, Any]]:
    """Return ARC's rows, from AI2's form (`question.stem`) or the hub's."""
    return [_arc_row(fields) for fields in _read(path)]


def hellaswag_rows(path: Path) -> list[dict[str, Any]]:
    """Return HellaSwag's rows; the label becomes text, as on the hub."""
    return [{**{key: row.get(key, "") for key in _HELLASWAG}, "label": str(row["label"])} for row in _read(path)]


def gsm8k_rows(path: Path) -> list[dict[str, Any]]:
    """Return GSM8K's rows."""
    return [{"question": row["question"], "answer": row["answer"]} for row in _read(path)]


def truthfulqa_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of TruthfulQA's mc_task.json, the best answer first, which is where the harness expects it."""
    return [
        {"question": row["question"], **{key: _targets(row[key]) for key in ("mc1_targets", "mc2_targets")}}
        for row in _read(path)
    ]


def mmlu_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one subject's CSV: question, four choices, and the answer from A or from 0; a header may lead.

    Raises:
        InputError: It cannot be read, or a row has another form.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    subject = path.name.partition(".")[0].rpartition("_")[0]
    if rows and rows[0][-1:] == ["answer"]:
        rows = rows[1:]
    return [_mmlu_row(row, subject, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _read(path: Path) -> list[Fields]:
    return [row.fields for row in read_rows(path)]


def _arc_row(row: Fields) -> dict[str, Any]:
    question, choices = row["question"], row.get("choices")
    if isinstance(question, Mapping):
        parts = question["choices"]
        choices = {key: [choice[key] for choice in parts] for key in ("text", "label")}
        question = question["stem"]
    return {"id": row["id"], "question": question, "choices": choices, "answerKey": row["answerKey"]}


def _targets(marks: Mapping[str, int]) -> dict[str, list[Any]]:
    ordered = sorted(marks.items(), key=lambda item: -item[1])
    return {"choices": [text for text, _ in ordered], "labels": [mark for _, mark in ordered]}


def _mmlu_row(row: list[str], subject: str, place: str) -> dict[str, Any]:
    answer = row[-1].strip() if len(row) == 6 else ""
    index = _LETTERS.find(answer) if answer in _LETTERS else int(answer) if answer.isdecimal() else -1
    if len(row) != 6 or answer == "" or not 0 <= index < 4:
        raise InputError(f"{place}: is not a question, four choices and an answer from A to D or 0 to 3.")
    return {"question": row[0], "subject": subject, "choices": row[1:5], "answer": index}
