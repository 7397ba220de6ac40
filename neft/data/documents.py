"""What a row becomes: first turns (what was said by whom), then segments (the text, and which of it is learned)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `context` is what Alpaca calls the input of an instruction."""

    role: Role
    content: str
    context: str = ""

    @property
    def text(self) -> str:
        """The content and, after an empty line, the context if there is one."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text; `is_target` if the model is to learn to write it (then it ends with end-of-sequence)."""

    text: str
    is_target: bool


@dataclass(frozen=True, slots=True)
class Document:
    """One training text, in segments, and the row of its file (from 1) for messages.

    `has_own_markers`: the text itself holds the tokenizer's special tokens (a chat template wrote them), so that none
    is added at its beginning or after a target.
    """

    segments: tuple[Segment, ...]
    row: int
    has_own_markers: bool = False

    @property
    def prompt(self) -> str:
        """The text before the first target; the whole text where nothing stands before it."""
        parts: list[str] = []
        for segment in self.segments:
            if segment.is_target:
                break
            parts.append(segment.text)
        return "".join(parts) or "".join(segment.text for segment in self.segments)
