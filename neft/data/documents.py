"""Rows as turns (who said what), and as segments (text, and which of it is learned)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        role: Who said it.
        content: The text.
        context: Alpaca's input of an instruction.
        is_learned: Of an answer: it is a target; otherwise it stays in the text for what follows.
    """

    role: Role
    content: str
    context: str = ""
    is_learned: bool = True

    @property
    def text(self) -> str:
        """The content and, after an empty line, the context if there is one."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content

    def answer(self, text: str | None = None) -> Segment:
        """Returns the segment of an answer; its text in a template if that is not the content."""
        return Segment(self.content if text is None else text, is_target=True, is_learned=self.is_learned)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text.

    Attributes:
        text: The text.
        is_target: The model writes it, so it ends with end-of-sequence.
        is_learned: False for an answer that the data marks as not to be learned.
    """

    text: str
    is_target: bool
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class Document:
    """One training text, in segments, and the row of its file (from 1) for messages.

    `has_own_markers`: the text itself holds the tokenizer's special tokens (a chat template wrote them), so that none
    is added at its beginning or after a target. `problem`: why the row does not fit; then there are no segments.
    """

    segments: tuple[Segment, ...]
    row: int
    has_own_markers: bool = False
    problem: str = ""

    @property
    def prompt(self) -> str:
        """The text before the first target; the whole text where nothing stands before it."""
        parts: list[str] = []
        for segment in self.segments:
            if segment.is_target:
                break
            parts.append(segment.text)
        return "".join(parts) or "".join(segment.text for segment in self.segments)
