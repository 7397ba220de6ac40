"""TruthfulQA with open answers, generated as the proxy-tuning paper did; judging them is a step of its own.

Source: Liu et al. 2024, section 4.2 (greedy, 512 tokens, the prompts of `benchmarks.tasks.truthfulqa_roles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure, field
from benchmarks.tasks.truthfulqa_roles import formats_with_cue
from benchmarks.truthfulqa_prompts import OPEN_CUE

NAME = "open"
MAX_NEW_TOKENS = 512
MEASURES = (
    Measure(name="true and informative", value=field("GPT-true-info acc"), missing="without verdict"),
    Measure(name="true", value=field("GPT-true acc"), missing="without verdict"),
    Measure(name="informative", value=field("GPT-info acc"), missing="without verdict"),
    Measure(name="words", value=field("num_words"), is_share=False),
)


@dataclass(frozen=True, kw_only=True)
class OpenPart:
    """The questions alone; `is_chat_expert` gives tuned models the paper's chat prompt."""

    questions: Sequence[str]
    is_chat_expert: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = NAME

    @property
    def formats(self) -> Formats:
        """The cue behind the question, or behind a chat turn."""
        return formats_with_cue(OPEN_CUE, is_chat_expert=self.is_chat_expert)

    def __len__(self) -> int:
        return len(self.questions)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Answer these questions."""
        chosen = [self.questions[index] for index in indices]
        outputs = answerer.generate(chosen, max_new_tokens=self.max_new_tokens)
        return [_row(question, cleaned(output)) for question, output in zip(chosen, outputs, strict=True)]


def cleaned(output: str) -> str:
    r"""Return an answer as the paper stores it.

    >>> cleaned(" Answer: Yes.\n\nNo. ")
    'Yes.\nNo.'
    """
    return output.strip().removeprefix(OPEN_CUE).strip().replace("\n\n", "\n")


def _row(question: str, output: str) -> dict[str, Any]:
    return {"Question": question, "output": output, "num_words": len(output.split())}
