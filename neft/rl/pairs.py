"""Answer pairs and prompts from files; every complaint names the file and the row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neft.data import Document, Segment, split
from neft.data.files import read_rows
from neft.errors import DataError, OutputError

_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A prompt with a better and a worse answer, and the row of its file (from 1) for messages."""

    prompt: str
    chosen: str
    rejected: str
    row: int

    def document(self, answer: str) -> Document:
        """Returns the prompt with an answer as a document that learns the answer."""
        return answered(self.prompt, answer, self.row)


def answered(prompt: str, answer: str, row: int = 0) -> Document:
    """Returns a prompt and its answer in the form in which `neft train` tokenizes them."""
    return Document((Segment(prompt, is_target=False), Segment(answer, is_target=True)), row)


def read_pairs(path: Path) -> list[AnswerPair]:
    """Returns the pairs of a file of rows `{"prompt", "chosen", "rejected"}`, all texts; other keys are ignored.

    The answer continues the prompt as it is, so a prompt ends with the space or line break that belongs there.

    Raises:
        DataError: the file cannot be read or is empty, or a row lacks a text or has the same answer twice.
    """
    pairs = [_pair(row, f"{path}, row {number}", number) for number, row in read_rows(path)]
    if not pairs:
        raise DataError(f'{path} has no rows; give at least one {{"prompt", "chosen", "rejected"}}.')
    return pairs


def read_prompts(path: Path) -> list[str]:
    """Returns the prompts of a file of rows `{"prompt"}`; other keys are ignored, so a file of pairs will do.

    Raises:
        DataError: the file cannot be read or is empty, or a row lacks its prompt.
    """
    prompts = [text_of(row, "prompt", f"{path}, row {number}") for number, row in read_rows(path)]
    if not prompts:
        raise DataError(f'{path} has no prompts; give at least one row {{"prompt": "…"}}.')
    return prompts


def write_pairs(path: Path, pairs: Iterable[AnswerPair], *, overwrite: bool) -> None:
    """Writes pairs as JSON lines; the file appears whole or not at all.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"output {path} already exists; choose another file or add --overwrite.")
    work = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with work.open("w", encoding="utf-8") as file:
            file.writelines(_line(pair) for pair in pairs)
        work.replace(path)
    except OSError as error:
        raise OutputError(f"output {path} cannot be written: {error.strerror}.") from error
    finally:
        # After a success it is gone already; where the folder cannot be read, there is nothing to remove.
        with suppress(OSError):
            work.unlink()


def split_pairs(
    pairs: Sequence[AnswerPair], *, eval_fraction: float, seed: int
) -> tuple[list[AnswerPair], list[AnswerPair]]:
    """Returns training and held-out pairs; the pairs of one prompt stay together, as in `neft.data.split`.

    Raises:
        DataError: there is only one pair, or only one prompt.
    """
    documents = [answered(pair.prompt, pair.chosen, index) for index, pair in enumerate(pairs)]
    train, held_out = split(documents, eval_fraction=eval_fraction, seed=seed)
    return [pairs[document.row] for document in train], [pairs[document.row] for document in held_out]


def text_of(row: dict[str, Any], key: str, where: str) -> str:
    """Returns a text of a row.

    Raises:
        DataError: it is missing, not a text, or blank.
    """
    if key not in row:
        raise DataError(f"{where} has no {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}.")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is a {type(value).__name__}; give a text.")
    if not value.strip():
        raise DataError(f"{where}: {key!r} is empty; give a text or leave the row out.")
    return value


def _pair(row: dict[str, Any], where: str, number: int) -> AnswerPair:
    prompt, chosen, rejected = (text_of(row, key, where) for key in _KEYS)
    if chosen == rejected:
        raise DataError(f"{where}: 'chosen' and 'rejected' are the same answer; leave the row out.")
    return AnswerPair(prompt, chosen, rejected, number)


def _line(pair: AnswerPair) -> str:
    values = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return json.dumps(values, ensure_ascii=False) + "\n"
