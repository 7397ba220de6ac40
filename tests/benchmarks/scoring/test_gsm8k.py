"""GSM8K's exact match against the published metrics and by hand."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring import gsm8k
from benchmarks.scoring.rows import Row, read_rows
from proxytune.errors import InputError


@pytest.mark.parametrize(("model", "num_right"), [("dexperts-13B", 348), ("llama2-13B", 87)])
def test_published_exact_match(
    published: Path, metrics_of: Callable[[Path], dict[str, Any]], model: str, num_right: int
) -> None:
    """Exact match equals the published one, and all 1,319 predictions are parsed as published."""
    folder = published / "gsm" / model
    score = gsm8k.score(read_rows(folder / "predictions.jsonl.gz"))
    assert score.metrics["exact_match"].value == metrics_of(folder / "metrics.json")["exact_match"] == num_right / 1319
    assert score.counts["num_parsed_otherwise"] == score.counts["num_missing"] == 0


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("$1,018.", "1018"),
        ("so -3", "3"),
        ("is -3.50 now", "-3.50"),
        ("1,234,567", "1234567"),
        ("a, b", None),
        ("", None),
    ],
)
def test_parse_number(output: str, number: str | None) -> None:
    """The last number counts, without digit commas; a whole number loses its sign, as published."""
    assert gsm8k.parse_number(output) == number


@pytest.mark.parametrize(
    ("output", "number"),
    [("6 - 9 = -3", "-3"), ("4-5", "5"), ("57.00", "57"), ("1,234,567", "1234567"), ("12,5", "5"), ("none", None)],
)
def test_last_number(output: str, number: str | None) -> None:
    """The signed number's value counts; a minus between digits is no sign, a comma that parts no thousands no comma."""
    assert gsm8k.last_number(output) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("-$3", "-3"),
        ("$-3", "-3"),
        (r"\(-\$1{,}234.50\)", "-1234.50"),
        (r"1\,234\,567", "1234567"),
        ("12\u202f500 €", "12500"),
        ("\u22123", "-3"),
        ("it is \u20135", "-5"),
        ("10\u201312", "12"),
        ("$10-$3", "3"),
        ("COVID-19", "19"),
        ("f(2)-3", "3"),
        (r"15\%", "15"),
        ("+7", "7"),
        ("about .5", ".5"),
    ],
)
def test_numbers_as_people_and_latex_write_them(output: str, number: str) -> None:
    """Signs, currencies, separators, typographic minus signs and per cent are read; what joins or subtracts is not."""
    assert gsm8k.last_number(output) == Decimal(number)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("so\n#### 1,018", "1018"),
        ("\u2212$3", "-3"),
        ("$-3", "-3"),
        (r"12{,}500", "12500"),
        ("20 %", "20"),
        ("-$-3", None),
        ("12,5", None),
        ("18 eggs", None),
    ],
)
def test_true_numbers(answer: str, number: str | None) -> None:
    """A true answer is one number, however it is written; anything else is none."""
    assert gsm8k.true_number(answer) == number


def test_both_forms_of_match(make_rows: Callable[..., list[Row]]) -> None:
    """By spelling 3 matches -3 and 57.00 misses 57; as numbers it is the other way round; no number is wrong."""
    pairs = (("-3", "it is 3"), ("57", "57.00"), ("1", "no idea"), ("so 2,125\n#### 2,125", "2125"))
    rows = make_rows(*({"question": str(n), "answer": a, "model_output": o} for n, (a, o) in enumerate(pairs)))
    score = gsm8k.score(rows)
    assert score.metrics["exact_match"].value == 0.5
    assert score.metrics["numeric_match"].value == 0.5
    assert (score.counts["num_unparsable"], score.counts["num_missing"]) == (1, 1315)


def test_a_true_answer_without_a_number_is_refused(make_rows: Callable[..., list[Row]]) -> None:
    """A row whose true answer is no number is refused with its line."""
    with pytest.raises(InputError, match=r"line 1: field 'answer' ends in 'many'"):
        gsm8k.score(make_rows({"question": "q", "answer": "many", "model_output": "3"}))
