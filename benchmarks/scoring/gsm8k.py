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
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
# Commas, LaTeX's {,} and \, and the narrow or unbreakable blanks of typography.
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\[,;:! ]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_CURRENCY = r"\\?[$€£¥]"
# A minus behind a word, a number or a bracket subtracts or joins.
_SIGNED_NUMBER = re.compile(rf"((?<![\w)\]}}%.-])-)?(?:{_CURRENCY})?(\d*\.?\d+)")
_TRUE_ANSWER = re.compile(rf"([-+]?)(?:{_CURRENCY})?([-+]?)(\d+(?:\.\d+)?)(?:\s*\\?%)?")
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
    r"""Return the last number of an answer with its sign, None if there is none.

    Separators of thousands are dropped, LaTeX's too; a currency may follow the sign; a minus may be a typographic one,
    and after a digit, a word or a bracket it is no sign.

    >>> last_number("6 - 9 = -3 degrees"), last_number("$57.00"), last_number("from 4-5")
    (Decimal('-3'), Decimal('57.00'), Decimal('5'))
    >>> last_number("a loss of \u2212$1{,}234"), last_number(r"\boxed{20\%}")
    (Decimal('-1234'), Decimal('20'))
    """
    numbers = _SIGNED_NUMBER.findall(_plain(output))
    return Decimal("".join(numbers[-1])) if numbers else None


def true_number(answer: str) -> str | None:
    r"""Return a true answer, or what follows its last "####", as a plain number; None if it is not one.

    >>> true_number("9 + 9 = 18\n#### $1,018"), true_number("-5%"), true_number("18 apples")
    ('1018', '-5', None)
    """
    match = _TRUE_ANSWER.fullmatch(_plain(answer.rpartition("####")[2].strip()))
    if match is None or (match[1] and match[2]):
        return None
    return ("-" if "-" in (match[1], match[2]) else "") + match[3]


def _plain(text: str) -> str:
    return _THOUSANDS.sub("", text.translate(_MINUS_SIGNS))


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
    spelt = (
        output if prediction is None else prediction for output, prediction in zip(outputs, predictions, strict=True)
    )
    return sum(
        "prediction" in row.fields and row.fields["prediction"] != text for row, text in zip(rows, spelt, strict=True)
    )


def _answer(row: Row) -> str:
    answer = row.text("answer")
    number = true_number(answer)
    if number is None:
        raise InputError(f"{row.place}: field 'answer' ends in {answer.strip()[-40:]!r}, not in a number.")
    return number
