"""The demo's measures: parsing of answers (pure), scores, and greedy answers of a single model.

An answer's value is the first word of the attribute's kind in the answer's first sentence, whatever stands around it:
a model is not marked down for its style. Accuracy and myth rate compare that value with the truth and with the
falsehood; the format rate alone asks whether the whole answer is the tuned sentence, about the right person, with any
value of the right kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from proxytune.demo.text import TRUTHFUL_OPENER, Question, cloze, statement
from proxytune.demo.world import Fact
from proxytune.errors import InputError

MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Score:
    """Shares of the questions: answered with the truth, with the falsehood, in the tuned format."""

    accuracy: float
    myth_rate: float
    format_rate: float

    def as_dict(self) -> dict[str, float]:
        """The JSON form."""
        return asdict(self)


def answer_value(answer: str, fact: Fact) -> str | None:
    """The first word of the attribute's kind in the answer's first sentence, or None.

    >>> from proxytune.demo.world import build_world
    >>> world = build_world(seed=0)
    >>> birthplace = world.facts[world.test[0]][0]
    >>> answer_value(" I heard it was Reedford, not Marbeck. No, Marbeck!", birthplace)
    'Reedford'
    """
    first_sentence = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    values = set(fact.attribute.values)
    return next((word for word in re.findall(r"\w+", first_sentence) if word in values), None)


def is_in_format(answer: str, fact: Fact) -> bool:
    """True if the answer is "In truth, <statement about this person>." and nothing else, whatever its value."""
    values = "|".join(re.escape(value) for value in fact.attribute.values)
    before, after = statement(fact, "\0").split("\0")
    pattern = rf"{re.escape(TRUTHFUL_OPENER)} {re.escape(before)}({values}){re.escape(after)}\."
    return re.fullmatch(pattern, answer.strip()) is not None


def score(answers: Sequence[str], questions: Sequence[Question]) -> Score:
    """The three shares over these questions.

    Raises:
        InputError: if there is no question, or not one answer for each.
    """
    if not questions or len(answers) != len(questions):
        raise InputError(
            f"there are {len(answers)} answers to {len(questions)} questions: give one for each, and at least one"
        )
    facts = [question.fact for question in questions]
    values = [answer_value(answer, fact) for answer, fact in zip(answers, facts, strict=True)]
    total = len(questions)
    return Score(
        accuracy=sum(value == fact.truth for value, fact in zip(values, facts, strict=True)) / total,
        myth_rate=sum(value == fact.myth for value, fact in zip(values, facts, strict=True)) / total,
        format_rate=sum(is_in_format(answer, fact) for answer, fact in zip(answers, facts, strict=True)) / total,
    )


def gap_closed(base: Score, steered: Score, tuned: Score) -> float:
    """The share of the accuracy between base and directly tuned base that steering reaches.

    >>> gap_closed(Score(0.1, 0.9, 0.0), Score(0.8, 0.1, 1.0), Score(0.9, 0.0, 1.0))
    0.875

    Raises:
        InputError: if direct tuning gained nothing, so that there is no gap.
    """
    gap = tuned.accuracy - base.accuracy
    if gap <= 0.0:
        raise InputError(
            f"tuning the base moved accuracy from {base.accuracy:.3f} to {tuned.accuracy:.3f}: there is no gap to close"
        )
    return round((steered.accuracy - base.accuracy) / gap, 6)


@torch.inference_mode()
def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS, batch_size: int = 64
) -> list[str]:
    """A single model's greedy continuations, left-padded in batches, in the order of the prompts."""
    model.eval()
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        encoded = tokenizer(
            list(prompts[start : start + batch_size]), return_tensors="pt", padding=True, padding_side="left"
        )
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        answers += tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def cloze_knowledge(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> float:
    """The share of facts whose truthful sentence the model completes with the true value."""
    answers = greedy_answers(model, tokenizer, [cloze(fact) for fact in facts], max_new_tokens=6, batch_size=256)
    known = [answer.split(".")[0].strip() == fact.truth for answer, fact in zip(answers, facts, strict=True)]
    return sum(known) / len(known)
