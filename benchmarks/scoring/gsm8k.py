r"""GSM8K: the last number of the answer against the true one.

Rows: `question`, `answer` (the number, or GSM8K's own text that ends in "#### number") and `model_output`; where a row
also holds `prediction`, as the published files do, the rows parsed otherwise are counted. Source: the per-question
files published with Liu et al. 2024, whose exact match ignores punctuation (so 3 matches -3, and 57.00 does not match
57). `numeric_match` compares the numbers with their signs instead.
"""

import re
import string
from collections.abc import Sequence
from decimal import Decimal

from benchmarks.scoring.rows import Row, reject_doubles
from benchmarks.scoring.score import Score, num_missing, share
from proxytune.errors import InputError

NAME = "gsm8k"
BENCHMARK_ROWS = 1319
# As published, a match eats both digits, so of 0,0,0 only the first comma goes.
_DIGIT_COMMA = re.compile(r"(\d),(\d)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_SIGNED_NUMBER = re.compile(r"(?<!\d)-?\d*\.?\d+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def parse_number(output: str) -> str | None:
    """Return the last number of an answer as the published parser spells it, None if there is none.

    Commas between digits are dropped first. The sign of a whole number is not part of it.

    >>> parse_number("She makes $2 x 9 = $1,018."), parse_number("it is -3 degrees"), parse_number("I cannot tell")
    ('1018', '3', None)
    """
    numbers = _NUMBER.findall(_DIGIT_COMMA.sub(r"\1\2", output))
    return numbers[-1] if numbers else None


def is_exact_match(prediction: str, answer: str) -> bool:
    """Return whether two numbers are spelt alike, punctuation aside.

    >>> is_exact_match("3", "-3"), is_exact_match("57.00", "57")
    (True, False)
    """
    return prediction.translate(_PUNCTUATION) == answer.translate(_PUNCTUATION)


def last_number(output: str) -> Decimal | None:
    """Return the last number of an answer with its sign, None if there is none; a minus after a digit is no sign.

    Only commas of thousands are dropped.

    >>> last_number("6 - 9 = -3 degrees"), last_number("$57.00"), last_number("from 4-5")
    (Decimal('-3'), Decimal('57.00'), Decimal('5'))
    """
    numbers = _SIGNED_NUMBER.findall(_THOUSANDS.sub("", output))
    return Decimal(numbers[-1]) if numbers else None


def score(rows: Sequence[Row]) -> Score:
    """Return the exact match as published, and the match as numbers; an answer without a number is wrong in both.

    Raises:
        InputError: A row lacks a field, its true answer is no number, or two answer the same question.
    """
    reject_doubles(rows, name="question")
    outputs = [row.text("model_output") for row in rows]
    answers = [_answer(row) for row in rows]
    predictions = [parse_number(output) for output in outputs]
    return Score(
        task=NAME,
        n=len(rows),
        metrics={
            "exact_match": share(
                prediction is not None and is_exact_match(prediction, answer)
                for prediction, answer in zip(predictions, answers, strict=True)
            ),
            "numeric_match": share(
                last_number(output) == Decimal(answer) for output, answer in zip(outputs, answers, strict=True)
            ),
        },
        counts={
            "num_missing": num_missing(len(rows), benchmark_rows=BENCHMARK_ROWS),
            "num_unparsable": predictions.count(None),
            "num_parsed_otherwise": _num_parsed_otherwise(rows, outputs, predictions),
        },
        notes=(
            "exact_match ignores punctuation, as published: 3 matches -3, 57.00 does not match 57; "
            "numeric_match compares the numbers; answers without a number count as wrong",
        ),
    )


def _num_parsed_otherwise(rows: Sequence[Row], outputs: Sequence[str], predictions: Sequence[str | None]) -> int:
    # The published files repeat the whole answer where they found no number.
    spelt = (output if found is None else found for output, found in zip(outputs, predictions, strict=True))
    return sum(
        "prediction" in row.fields and row.fields["prediction"] != text for row, text in zip(rows, spelt, strict=True)
    )


def _answer(row: Row) -> str:
    answer = _THOUSANDS.sub("", row.text("answer").rpartition("####")[2].strip())
    if not re.fullmatch(r"-?\d+(\.\d+)?", answer):
        raise InputError(f"{row.place}: field 'answer' ends in {answer[-40:]!r}, not in a number.")
    return answer
