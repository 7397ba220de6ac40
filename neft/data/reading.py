"""Rows of a file as documents; every complaint names the file and the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from neft.data.chat import chat_template
from neft.data.documents import Document, Segment
from neft.data.files import read_rows
from neft.data.formats import AUTO, FORMATS, complete_turns, format_of
from neft.data.messages import Row, Turns
from neft.data.templates import CHAT, TEMPLATES, Template, own_template
from neft.errors import DataError, InputError
from neft.kinds import OnBadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT = "text"


def read_documents(
    path: Path,
    *,
    format: str,
    template: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = _TEXT,
    dataset_split: str | None = None,
    on_bad_row: OnBadRow = "error",
    columns: Mapping[str, str] | None = None,
) -> list[Document]:
    """Returns the documents of a data file or `datasets` folder; see `neft.data.files` for the kinds of files.

    Args:
        path: .json, .jsonl or .txt (each also .gz), .parquet, or a folder of `datasets`.
        format: Format of the rows, one of `FORMATS`; `auto` for the one whose columns the first row has.
        template: Template that turns them into text: one of `TEMPLATES`, `chat` for the tokenizer's own, or a text with
            `{instruction}`, `{input}` or `{prompt}` in it. If not given, the one that `FORMATS` names for the format.
        tokenizer: For the template `chat`.
        text_column: The column of the format `text`.
        dataset_split: Split of a `datasets` folder with several.
        columns: The file's names of a format's columns, `{"prompt": "question", "completion": "answer"}`.
        on_bad_row: `skip` gives a row that does not fit as a document without segments, with its `problem`.

    Raises:
        InputError: the format or template is unknown, or they do not go together.
        DataError: the file cannot be read, is empty, or a row is not what the format says.
    """
    if format == AUTO:
        format = detect_format(path, text_column=text_column, dataset_split=dataset_split, columns=columns)
    _check_bad_row(on_bad_row)
    to_turns = _format(format, text_column)
    to_segments, has_own_markers = _template(template, format, tokenizer)
    documents: list[Document] = []
    for number, row in read_rows(path, dataset_split=dataset_split):
        try:
            row = _named(row, columns or {})
            segments = _segments(row, to_turns, to_segments, where=f"{path}, row {number}", format=format)
        except DataError as error:
            if on_bad_row == "error":
                raise
            documents.append(Document((), number, problem=str(error)))
            continue
        documents.append(Document(segments, number, has_own_markers))
    if not documents:
        raise DataError(f"{path} has no rows; give a file with at least one.")
    return documents


def detect_format(
    path: Path,
    *,
    text_column: str = _TEXT,
    dataset_split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """Returns the format whose columns the first row of a file has.

    Raises:
        DataError: the file cannot be read or is empty, or its columns are those of no format, or of several.
    """
    first = next(iter(read_rows(path, dataset_split=dataset_split)), None)
    if first is None:
        raise DataError(f"{path} has no rows; give a file with at least one.")
    number, row = first
    try:
        return format_of(_named(row, columns or {}), text_column)
    except ValueError as error:
        raise DataError(f"{path}, row {number}: {error}; name the format ({', '.join(sorted(FORMATS))}).") from error


def _segments(
    row: Row, to_turns: Callable[..., Turns], to_segments: Template, *, where: str, format: str
) -> tuple[Segment, ...]:
    try:
        turns = to_turns(row)
        if format != _TEXT:
            turns = complete_turns(row, turns)
    except ValueError as error:
        raise DataError(f"{where} does not fit the format {format}: {error}.") from error
    is_answered = any(turn.role == "assistant" for turn in turns)
    try:
        return to_segments(turns) if is_answered else ()
    except ValueError as error:
        raise DataError(f"{where} does not fit the template: {error}.") from error


def _named(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns the columns that are not null by the format's names.

    Parquet and datasets fill a column that a row lacks with null.
    """
    filled = {name: value for name, value in row.items() if value is not None}
    named = {name: filled[column] for name, column in columns.items() if column in filled}
    # A column whose name is taken by another is not read under it.
    rest = {name: value for name, value in filled.items() if name not in columns and name not in columns.values()}
    return {**rest, **named}


def _check_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in get_args(OnBadRow):
        raise InputError(f"on_bad_row is {on_bad_row!r}; choose one of {', '.join(get_args(OnBadRow))}.")


def _format(format: str, text_column: str) -> Callable[..., Turns]:
    if format not in FORMATS:
        raise InputError(f"format is {format!r}; choose auto or one of {', '.join(sorted(FORMATS))}.")
    if text_column == _TEXT:
        return FORMATS[format].turns
    if format != _TEXT:
        raise InputError(
            f"text_column is {text_column!r}, but the format {format} has columns of its own; leave it out."
        )
    return partial(FORMATS[format].turns, column=text_column)


def _template(template: str | None, format: str, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Template, bool]:
    """Returns the template, and whether it writes the special tokens itself."""
    name = FORMATS[format].template if template is None else template
    if format == _TEXT and name != "raw":
        raise InputError(f"template is {name!r}, but the format text is learned as it is; leave it out.")
    if name in TEMPLATES:
        return TEMPLATES[name], False
    if name != CHAT:
        return own_template(name), False
    if tokenizer is None:
        raise InputError("the template chat is the tokenizer's own; give read_documents the tokenizer.")
    return chat_template(tokenizer), True
