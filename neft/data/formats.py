"""Data formats: each is one function from a row to turns, and one entry in `FORMATS`.

A format raises `ValueError` with what is wrong with the row; the reader adds the file and the row number. A row may
come out without an answer (a conversation that nobody replied to): it is counted and left out when tokenized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import dropwhile

from neft.data.documents import Turn
from neft.data.messages import Row, Turns, read_messages, refuse_fields, text_of


@dataclass(frozen=True, slots=True)
class Format:
    """The reader of a row, and the template (`neft.data.TEMPLATES`) that writes them unless the user names another."""

    turns: Callable[..., Turns]
    template: str


def prompt_completion(row: Row) -> Turns:
    """`{"prompt": ..., "completion": ...}`: the completion is learned; the prompt may be empty."""
    _refuse_bad_answer(row)
    return Turn("user", text_of(row, "prompt")), Turn("assistant", text_of(row, "completion", filled=True))


def conversational(row: Row) -> Turns:
    """TRL's `{"prompt": [message, ...], "completion": [message, ...]}`: the answers of the completion are learned."""
    _refuse_bad_answer(row)
    prompt = tuple(replace(turn, is_learned=False) for turn in read_messages(row, "prompt"))
    return *prompt, *read_messages(row, "completion")


def alpaca(row: Row) -> Turns:
    """`{"instruction": ..., "input": ..., "output": ...}`: the output is learned; the input may be empty or absent.

    An empty output stays (the public file has 28): the model learns to end at once.
    """
    context = text_of(row, "input") if "input" in row else ""
    return Turn("user", text_of(row, "instruction", filled=True), context), Turn("assistant", text_of(row, "output"))


def sharegpt(row: Row) -> Turns:
    """`{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}`: every answer is learned.

    Answers before the first question are left out: they answer something that the row does not show.
    """
    turns = read_messages(row, "conversations")
    system = turns[:1] if turns and turns[0].role == "system" else ()
    return *system, *dropwhile(lambda turn: turn.role != "user", turns[len(system) :])


def sharegpt_single(row: Row) -> Turns:
    """A ShareGPT row of which only the first question and its answer are read, with the system text before them."""
    turns = sharegpt(row)
    num_turns = next((index + 1 for index, turn in enumerate(turns) if turn.role == "assistant"), 0)
    return turns[:num_turns]


def chat(row: Row) -> Turns:
    """`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}`: every answer is learned."""
    return read_messages(row, "messages")


def text(row: Row, column: str = "text") -> Turns:
    """A plain text in one column; all of it is learned."""
    return (Turn("assistant", text_of(row, column)),)


FORMATS: dict[str, Format] = {
    "prompt-completion": Format(prompt_completion, "raw"),
    "conversational": Format(conversational, "chat"),
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
_SYSTEM_COLUMNS = ("system", "system_prompt")
_UNUSED_COLUMNS = (
    *("tools", "functions", "tool_calls", "reasoning_content"),
    *("image", "images", "audio", "audios", "video", "videos"),
)


def format_of(row: Row, text_column: str) -> str:
    """Returns the format whose columns a row has.

    Raises:
        ValueError: it has those of none, or of several.

    >>> format_of({"instruction": "Add 1 and 1.", "input": "", "output": "2"}, "text")
    'alpaca'
    """
    names = [name for name, columns in _COLUMNS.items() if all(column in row for column in columns)]
    # A text column beside the columns of a format is often that row rendered, as in Alpaca's published parquet.
    names = names or ["text"] * (text_column in row)
    if len(names) == 1:
        is_conversational = names == ["prompt-completion"] and isinstance(row["prompt"], list)
        return "conversational" if is_conversational else names[0]
    columns = ", ".join(repr(column) for column in row) or "none"
    pairs = "; `neft reward` and `neft rl` take pairs" if "chosen" in row else ""
    raise ValueError(f"its columns ({columns}) are those of {'no format' if not names else ' and '.join(names)}{pairs}")


def complete_turns(row: Row, turns: Turns) -> Turns:
    """Returns the turns of a row with its columns `system` and `history` (question-answer pairs) before them.

    Raises:
        ValueError: the row has a column that would be dropped although it says what is to be learned, or two systems.
    """
    refuse_fields(row, _UNUSED_COLUMNS, "which would not be learned; take the column out, or leave the row out")
    pair = "so it is a pair of answers for `neft reward` and `neft rl`; take the column out to learn the rest"
    refuse_fields(row, ("chosen", "rejected"), pair)
    before = _system(row) + _history(row)
    if before and turns and turns[0].role == "system":
        raise ValueError("it has a system text among its messages, and a column 'system' or 'history'; keep one")
    return before + turns


def _system(row: Row) -> Turns:
    names = [name for name in _SYSTEM_COLUMNS if row.get(name)]
    if len(names) > 1:
        raise ValueError(f"it has both {names[0]!r} and {names[1]!r}; keep one")
    return tuple(Turn("system", text_of(row, name)) for name in names)


def _history(row: Row) -> Turns:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in history
    ):
        raise ValueError("its 'history' is no list of [question, answer] pairs; write it so, or take it out")
    return tuple(turn for question, answer in history for turn in (Turn("user", question), Turn("assistant", answer)))


def _refuse_bad_answer(row: Row) -> None:
    if "label" in row and row["label"] in (False, "false", "False"):
        raise ValueError(f"its 'label' is {row['label']!r}, a bad answer in KTO's form; leave such rows out")
