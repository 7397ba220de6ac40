"""Data formats: each is one function from a row to turns, and one entry in `FORMATS`.

A format raises `ValueError` with what is wrong with the row; the reader adds the file and the row number. A row may
come out without an answer (a conversation that nobody replied to): it is counted and left out when tokenized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from neft.data.documents import Role, Turn

Row = Mapping[str, Any]
Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are read, and the template (`neft.data.TEMPLATES`) that writes them unless the user names another."""

    turns: Callable[..., Turns]
    template: str


def prompt_completion(row: Row) -> Turns:
    """`{"prompt": ..., "completion": ...}`: the completion is learned; the prompt may be empty."""
    return Turn("user", _text(row, "prompt")), Turn("assistant", _text(row, "completion", filled=True))


def alpaca(row: Row) -> Turns:
    """`{"instruction": ..., "input": ..., "output": ...}`: the output is learned; the input may be empty or absent.

    An empty output stays (the public file has 28): the model learns to end at once.
    """
    context = _text(row, "input") if "input" in row else ""
    return Turn("user", _text(row, "instruction", filled=True), context), Turn("assistant", _text(row, "output"))


def sharegpt(row: Row) -> Turns:
    """`{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}`: every answer is learned.

    Answers before the first question are left out: they answer something that the row does not show.
    """
    names: dict[str, Role] = {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
    }
    turns = _messages(row, "conversations", sender="from", content="value", roles=names)
    system = turns[:1] if turns and turns[0].role == "system" else ()
    return *system, *dropwhile(lambda turn: turn.role != "user", turns[len(system) :])


def sharegpt_single(row: Row) -> Turns:
    """A ShareGPT row of which only the first question and its answer are read, with the system text before them."""
    turns = sharegpt(row)
    num_turns = next((place + 1 for place, turn in enumerate(turns) if turn.role == "assistant"), 0)
    return turns[:num_turns]


def chat(row: Row) -> Turns:
    """`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}`: every answer is learned."""
    names: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    return _messages(row, "messages", sender="role", content="content", roles=names)


def text(row: Row, column: str = "text") -> Turns:
    """A plain text in one column; all of it is learned."""
    return (Turn("assistant", _text(row, column)),)


FORMATS: dict[str, Format] = {
    "prompt-completion": Format(prompt_completion, "raw"),
    "alpaca": Format(alpaca, "alpaca"),
    "sharegpt": Format(sharegpt, "vicuna"),
    "sharegpt-single": Format(sharegpt_single, "alpaca"),
    "chat": Format(chat, "chat"),
    "text": Format(text, "raw"),
}


AUTO = "auto"
"""In place of a format's name: the one whose columns the first row has."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "chat": ("messages",),
}


def format_of(row: Row, text_column: str) -> str:
    """Returns the format whose columns a row has.

    Raises:
        ValueError: it has those of none, or of several.

    >>> format_of({"instruction": "Add 1 and 1.", "input": "", "output": "2"}, "text")
    'alpaca'
    """
    found = [name for name, columns in _COLUMNS.items() if all(column in row for column in columns)]
    # A text column beside the columns of a format is often that row rendered, as in Alpaca's published parquet.
    found = found or ["text"] * (text_column in row)
    if len(found) == 1:
        return found[0]
    columns = ", ".join(repr(column) for column in row) or "none"
    raise ValueError(f"its columns ({columns}) are those of {'no format' if not found else ' and '.join(found)}")


def _messages(row: Row, key: str, *, sender: str, content: str, roles: Mapping[str, Role]) -> Turns:
    if key not in row:
        raise ValueError(f"it has no {key!r}")
    if not isinstance(row[key], list):
        raise ValueError(f"its {key!r} is {type(row[key]).__name__}, not a list")
    turns = []
    for number, message in enumerate(row[key], start=1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is {type(message).__name__}, not an object")
        try:
            name = _text(message, sender)
            value = _text(message, content)
        except ValueError as error:
            raise ValueError(f"message {number} does not fit: {error}") from error
        if name not in roles:
            raise ValueError(f"message {number} is from {name!r}; known are {', '.join(roles)}")
        if roles[name] == "system" and number > 1:
            raise ValueError(f"message {number} is a system text; only the first can be one")
        turns.append(Turn(roles[name], value))
    return tuple(turns)


def _text(row: Row, key: str, *, filled: bool = False) -> str:
    if key not in row:
        raise ValueError(f"it has no {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"its {key!r} is {type(value).__name__}, not a string")
    if filled and not value:
        raise ValueError(f"its {key!r} is empty")
    if not value.isascii():
        _check_unicode(value, key)
    return value


def _check_unicode(value: str, key: str) -> None:
    """JSON can write half a surrogate pair, which no tokenizer takes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"its {key!r} has half of a surrogate pair at character {error.start}") from error
