"""TruthfulQA by letter, exactly as the proxy-tuning paper ran it: ten new tokens, of which the first letter counts.

Source: Liu et al. 2024, section 4.2, and the per-question files published with it; see `benchmarks.truthfulqa_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure, field
from benchmarks.scoring.truthfulqa_letter import parse_letter
from benchmarks.tasks.truthfulqa_roles import formats_with_cue
from benchmarks.truthfulqa_prompts import LETTER_CUE, LetterQuestion

MAX_NEW_TOKENS = 10
MEASURES = (Measure(name="accuracy", value=field("is_right"), missing="unparsable"),)


@dataclass(frozen=True, kw_only=True)
class LetterPart:
    """The lettered questions; `is_chat_expert` gives tuned models the paper's chat prompt."""

    questions: Sequence[LetterQuestion]
    is_chat_expert: bool = False
    name: str = "letter"

    @property
    def formats(self) -> Formats:
        """The cue behind the choices, or behind a chat turn."""
        return formats_with_cue(LETTER_CUE, is_chat_expert=self.is_chat_expert)

    def __len__(self) -> int:
        return len(self.questions)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Answer these questions; one that names no letter has `is_right` null."""
        chosen = [self.questions[index] for index in indices]
        outputs = answerer.generate([question.body for question in chosen], max_new_tokens=MAX_NEW_TOKENS)
        return [_row(question, output) for question, output in zip(chosen, outputs, strict=True)]


def _row(question: LetterQuestion, output: str) -> dict[str, Any]:
    letter = parse_letter(output)
    return {
        "Question": question.question,
        "mc_answer_idx": question.answer,
        "mc_output": output,
        "parsed_output": letter,
        "is_right": None if letter is None else letter == question.answer,
    }
