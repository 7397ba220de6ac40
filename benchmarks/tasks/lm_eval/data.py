"""The harness's tasks on local files: the built-in definitions, their data replaced by rows as the hub has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scoring.rows import read_rows, read_text
from proxytune.errors import InputError

Fields = Mapping[str, Any]

_LETTERS = "ABCD"
_HELLASWAG = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "source_id", "split", "split_type")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


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
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
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


def _mmlu_row(row: list[str], subject: str, location: str) -> dict[str, Any]:
    answer = row[-1].strip() if len(row) == 6 else ""
    index = _LETTERS.find(answer) if answer in _LETTERS else int(answer) if answer.isdecimal() else -1
    if len(row) != 6 or answer == "" or not 0 <= index < 4:
        raise InputError(f"{location}: is not a question, four choices and an answer from A to D or 0 to 3.")
    return {"question": row[0], "subject": subject, "choices": row[1:5], "answer": index}


@dataclass(frozen=True, kw_only=True)
class Local:
    """Location of a hub dataset among the user's files.

    Attributes:
        rows: Reads one of them.
        splits: By the hub's name of the split: names without suffix, the first that exists; `{name}` is the dataset's.
        names: The dataset's names (its configurations) for which this holds; empty for all.
    """

    rows: Callable[[Path], list[dict[str, Any]]]
    splits: Mapping[str, Sequence[str]]
    names: Sequence[str] = field(default=())


# By the dataset's id on the hub.
DATASETS = {
    "allenai/ai2_arc": Local(
        rows=arc_rows,
        splits={"train": ("arc/{name}-train",), "validation": ("arc/{name}-dev",), "test": ("arc/{name}-test",)},
    ),
    "Rowan/hellaswag": Local(
        rows=hellaswag_rows,
        splits={
            "train": ("hellaswag/hellaswag_train",),
            "validation": ("hellaswag/hellaswag_val", "hellaswag/hellaswag_val_1000"),
        },
    ),
    "cais/mmlu": Local(
        rows=mmlu_rows,
        splits={
            "dev": ("mmlu/dev/{name}_dev",),
            "validation": ("mmlu/val/{name}_val",),
            "test": ("mmlu/test/{name}_test",),
        },
    ),
    "truthfulqa/truthful_qa": Local(
        rows=truthfulqa_rows, splits={"validation": ("truthfulqa/mc_task",)}, names=("multiple_choice",)
    ),
    "openai/gsm8k": Local(
        rows=gsm8k_rows,
        splits={"train": ("gsm8k/train", "instruct/gsm8k_train"), "test": ("gsm8k/test",)},
        names=("main",),
    ),
}


def write_task(
    name: str, definition: Path, settings: Mapping[str, Any], data_dir: Path, folder: Path, *, num_fewshot: int
) -> None:
    """Write into `folder` a definition of the task that reads the files of `data_dir`, and the files it reads.

    Args:
        name: Of the task.
        definition: The built-in one.
        settings: Settings of the built-in one, with those it includes.
        data_dir: The user's files, laid out as in `DATASETS`.
        folder: Folder to write to.
        num_fewshot: Examples in front of each question.

    Raises:
        InputError: These data have no place among local files, or a file is missing; the text names it.
    """
    dataset, dataset_name = settings.get("dataset_path"), settings.get("dataset_name")
    local = DATASETS.get(str(dataset))
    if local is None or (local.names and dataset_name not in local.names):
        raise InputError(
            f"{name!r} reads {dataset!r} ({dataset_name}), which --data-dir has no place for (it has one for "
            f"{', '.join(DATASETS)}): leave --data-dir out to take the hub's."
        )
    paths = {split: path for split in local.splits if (path := _find(local, split, dataset_name, data_dir))}
    for split in _needed(settings, num_fewshot):
        if split not in paths:
            file_name = local.splits.get(split, (f"(no {split} split)",))[0].format(name=dataset_name)
            raise InputError(
                f"{str(data_dir)!r} has no {file_name}.jsonl or .csv, which {name!r} reads (also gzipped)."
            )
    stem = f"{str(dataset).replace('/', '-')}-{dataset_name}"
    files = {split: _converted(local, path, folder / f"{stem}-{split}.jsonl") for split, path in paths.items()}
    override = {
        "include": str(definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "arrow")},
        **{key: None for key in _SPLITS if settings.get(key) is not None and settings[key] not in paths},
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(override, indent=1), encoding="utf-8")


def _needed(settings: Mapping[str, Any], num_fewshot: int) -> list[str]:
    """Return the splits without which the task would be another one."""
    asked = settings.get("test_split") or settings.get("validation_split")
    shown = settings.get("fewshot_split") or settings.get("training_split") or settings.get("validation_split")
    return [str(asked), *([str(shown)] if num_fewshot else [])]


def _find(local: Local, split: str, name: Any, data_dir: Path) -> Path | None:
    stems = [stem.format(name=name) for stem in local.splits[split]]
    paths = (data_dir / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _converted(local: Local, path: Path, target: Path) -> str:
    """Write a file's rows as the hub has them, unless another task's definition did already."""
    if not target.exists():
        try:
            rows = local.rows(path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: a row is not of the form this benchmark has ({error!r}).") from error
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        target.write_text("".join(lines), encoding="utf-8")
    return str(target)
