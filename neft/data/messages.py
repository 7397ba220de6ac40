"""Messages of a conversation as turns; each field of a message is used, known to mean nothing, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neft.data.documents import Role, Turn

Row = Mapping[str, Any]
Turns = tuple[Turn, ...]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}

# Fields that carry something to learn or to learn from, and for which no template of neft has a position.
_UNUSED_FIELDS = (
    *("tool_calls", "tool_call_id", "function_call", "tools", "functions", "train_detail", "refusal"),
    *("reasoning_content", "reasoning", "thinking", "image", "images", "audio", "audios", "video", "videos"),
)
_LEARNED_FIELDS = ("weight", "train", "training")


def read_messages(row: Row, key: str) -> Turns:
    """Returns the turns of a list of messages, `{"role", "content"}` or `{"from", "value"}`; null fields are absent.

    An answer with `"weight": 0` (OpenAI) or `"train": false` (axolotl) stays in the text and is not learned.

    Raises:
        ValueError: the row does not hold such a list; the text names the message and the field.
    """
    if key not in row:
        raise ValueError(f"it has no {key!r}")
    if not isinstance(row[key], list):
        raise ValueError(f"its {key!r} is {type(row[key]).__name__}, not a list")
    turns = []
    for number, message in enumerate(row[key], start=1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is {type(message).__name__}, not an object")
        try:
            turn = _turn({name: value for name, value in message.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"message {number} does not fit: {error}") from error
        if turn.role == "system" and number > 1:
            raise ValueError(f"message {number} is a system text; only the first can be one")
        turns.append(turn)
    return tuple(turns)


def text_of(row: Row, key: str, *, filled: bool = False) -> str:
    """Returns a text of a row or message.

    Raises:
        ValueError: it is absent, no text, or (if `filled`) empty.
    """
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


def refuse_fields(row: Row, names: tuple[str, ...], reason: str) -> None:
    """Refuses fields that would be dropped; null and empty ones mean nothing.

    Raises:
        ValueError: the row has one of them.
    """
    for name in names:
        if row.get(name):
            raise ValueError(f"it has {name!r}, {reason}")


def _turn(message: Row) -> Turn:
    refuse_fields(message, _UNUSED_FIELDS, "which would not be learned; take it out, or leave the row out")
    sender, content = ("from", "value") if "from" in message else ("role", "content")
    name = text_of(message, sender)
    if name not in ROLES:
        raise ValueError(f"it is from {name!r}; known are {', '.join(ROLES)}")
    role = ROLES[name]
    text = text_of({content: _joined(message[content])} if content in message else message, content)
    return Turn(role, text, is_learned=_is_learned(message, role))


def _is_learned(message: Row, role: Role) -> bool:
    for name in _LEARNED_FIELDS:
        if name not in message:
            continue
        if message[name] not in (0, 1):
            raise ValueError(f"its {name!r} is {message[name]!r}; only 0 (not learned) and 1 are known")
        if role != "assistant" and message[name]:
            raise ValueError(f"its {name!r} is {message[name]!r}, but only answers are learned; take it out")
        if not message[name]:
            return False
    return True


def _joined(content: Any) -> Any:
    """Returns the text of a list of parts `{"type": "text", "text": ...}`, and anything else as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"its 'content' has a part of type {kind!r}; only text is learned")
    return "".join(text_of(part, "text") for part in content)


def _check_unicode(value: str, key: str) -> None:
    """JSON can write half a surrogate pair, which no tokenizer takes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"its {key!r} has half of a surrogate pair at character {error.start}") from error
