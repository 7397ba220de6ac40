"""Answer pairs from votes, as the StackExchange preference data make them.

score = log2(1 + upvotes) rounded, plus 1 if the asker accepted the answer; −1 if the upvotes are negative (Askell et
al. 2021, arXiv 2112.00861, and StackLLaMA after it). Answers with the same score give no pair, and a question gives
at most ten.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from neft.data.files import read_rows
from neft.errors import DataError, InputError
from neft.rl.pairs import AnswerPair, text_of

MAX_PAIRS = 10
TEMPLATE = "Question: {question}\n\nAnswer: "
_PLACE = "{question}"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its score."""

    text: str
    score: int


def score_of_votes(upvotes: int, *, is_accepted: bool) -> int:
    """Returns the score of an answer.

    The logarithm of a whole number is never halfway between two whole numbers, so the way of rounding does not matter.
    Negative upvotes give −1 whether the answer was accepted or not.

    >>> [score_of_votes(upvotes, is_accepted=False) for upvotes in (-3, 0, 1, 2, 4, 5, 100)]
    [-1, 0, 1, 2, 2, 3, 7]
    >>> score_of_votes(5, is_accepted=True), score_of_votes(-1, is_accepted=True)
    (4, -1)
    """
    if upvotes < 0:
        return -1
    return round(math.log2(1 + upvotes)) + int(is_accepted)


def pairs_of_question(
    prompt: str, answers: Sequence[Answer], *, seed: int = 0, max_pairs: int = MAX_PAIRS, row: int = 0
) -> list[AnswerPair]:
    """Returns up to `max_pairs` pairs of answers with different scores, the better one chosen.

    The choice among more depends on the seed and the prompt only, not on the other rows of a file. The same text
    with two scores is not a pair.

    >>> answers = [Answer("a", 2), Answer("b", 0), Answer("c", 2)]
    >>> [(pair.chosen, pair.rejected) for pair in pairs_of_question("q", answers)]
    [('a', 'b'), ('c', 'b')]
    """
    pairs = [
        AnswerPair(prompt, better.text, worse.text, row)
        for better, worse in (
            (one, other) if one.score > other.score else (other, one) for one, other in combinations(answers, 2)
        )
        if better.score != worse.score and better.text != worse.text
    ]
    if len(pairs) <= max_pairs:
        return pairs
    # A text seeds the generator through SHA-512: the same on every machine and in every process.
    kept = random.Random(f"{seed}/{prompt}").sample(range(len(pairs)), max_pairs)
    return [pairs[index] for index in sorted(kept)]


def read_scored_pairs(
    path: Path, *, seed: int = 0, max_pairs: int = MAX_PAIRS, template: str = TEMPLATE
) -> list[AnswerPair]:
    """Returns the pairs of a file of rows `{"question", "answers": [{"text", "upvotes", "accepted"}, …]}`.

    `accepted` may be missing (not accepted) and may be called `selected`. In place of `upvotes`, an answer may bring a
    finished score as `pm_score`, as the StackExchange preference data do; it is taken as it is.

    Args:
        path: A file of rows.
        seed: Chooses among more than `max_pairs` pairs.
        max_pairs: Of one question.
        template: Form of the prompt, with `{question}` in it.

    Raises:
        InputError: the template has no `{question}`, or `max_pairs` is below 1.
        DataError: the file cannot be read, a row is malformed, or no question gives a pair.
    """
    if _PLACE not in template:
        raise InputError(f"template is {template!r}; put {_PLACE} where the question belongs.")
    if max_pairs < 1:
        raise InputError(f"max_pairs is {max_pairs}; give at least 1.")
    pairs: list[AnswerPair] = []
    num_rows = 0
    for number, row in read_rows(path):
        num_rows += 1
        where = f"{path}, row {number}"
        prompt = template.replace(_PLACE, text_of(row, "question", where))
        pairs += pairs_of_question(prompt, _answers(row, where), seed=seed, max_pairs=max_pairs, row=number)
    if not pairs:
        raise DataError(f"{path} gives no pair: none of its {num_rows} rows has two answers with different scores.")
    return pairs


def _answers(row: dict[str, Any], where: str) -> list[Answer]:
    answers = row.get("answers")
    if not isinstance(answers, list):
        raise DataError(f'{where} has no list of \'answers\'; give [{{"text", "upvotes", "accepted"}}, …].')
    return [_answer(answer, f"{where}, answer {number}") for number, answer in enumerate(answers, start=1)]


def _answer(answer: Any, where: str) -> Answer:
    if not isinstance(answer, dict):
        raise DataError(f"{where} is a {type(answer).__name__}; give an object.")
    text = text_of(answer, "text", where)
    if "pm_score" in answer and "upvotes" not in answer:
        return Answer(text, _integer(answer, "pm_score", where))
    accepted = answer.get("accepted", answer.get("selected", False))
    if not isinstance(accepted, bool):
        raise DataError(f"{where}: 'accepted' is {accepted!r}; give true or false.")
    return Answer(text, score_of_votes(_integer(answer, "upvotes", where), is_accepted=accepted))


def _integer(answer: dict[str, Any], key: str, where: str) -> int:
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: {key!r} is {value!r}; give a whole number.")
    return value
