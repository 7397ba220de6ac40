"""Letter accuracy against the published metrics and by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring import truthfulqa_letter
from benchmarks.scoring.rows import Row, read_rows
from proxytune.errors import InputError


@pytest.mark.parametrize("model", ["dexperts-13B-helpful-prompt", "llama2-13B", "llama2-chat-7B-helpful-prompt"])
def test_published_accuracy(published: Path, metrics_of: Callable[[Path], dict[str, Any]], model: str) -> None:
    """Accuracy and the number of unparsable rows equal the published ones, and every row is parsed as published."""
    folder = published / "truthfulqa" / model
    metrics = metrics_of(folder / "mc_metrics.json")
    rows = read_rows(folder / "mc_results.jsonl.gz")
    score = truthfulqa_letter.score(rows)
    assert score.metrics["accuracy"].value == metrics["acc"]
    assert score.counts["num_unparsable"] == metrics["num_invalid_predictions"]
    assert score.n == metrics["tot"]
    assert score.counts["num_parsed_otherwise"] == score.counts["num_missing"] == 0
    for row in rows:
        letter = truthfulqa_letter.parse_letter(row.text("mc_output"))
        expected = None if letter is None else letter == row.text("mc_answer_idx")
        assert row.fields["correct"] is expected


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("\n\nA", "A"),
        (" (B) is", "B"),
        (" America", "A"),
        ("\n\n\\begin{blockquote}\n\n D", "D"),
        ("**A", None),
        ("\n\n\\strong{B", None),
        (" I cannot", None),
        ("E", None),
        ("", None),
        ("   ", None),
    ],
)
def test_parse_letter(output: str, letter: str | None) -> None:
    """The letter an answer begins with counts, markup other than the LaTeX quotation hides it."""
    assert truthfulqa_letter.parse_letter(output) == letter


def test_unparsable_rows_are_reported_both_ways(make_rows: Callable[..., list[Row]]) -> None:
    """One right of two parsable rows is 1/2; with two unparsable ones as wrong it is 1/4."""
    outputs = ("A", "B", "no idea", "")
    rows = make_rows(*({"Question": str(n), "mc_output": out, "mc_answer_idx": "A"} for n, out in enumerate(outputs)))
    score = truthfulqa_letter.score(rows)
    assert (score.metrics["accuracy"].value, score.metrics["accuracy"].n) == (0.5, 2)
    assert (score.metrics["accuracy_of_all"].value, score.metrics["accuracy_of_all"].n) == (0.25, 4)
    assert score.counts == {"num_missing": 813, "num_unparsable": 2, "num_parsed_otherwise": 0}


def test_nothing_parsable_has_no_accuracy(make_rows: Callable[..., list[Row]]) -> None:
    """Without a parsable row the accuracy is None, not zero."""
    score = truthfulqa_letter.score(make_rows({"Question": "q", "mc_output": "x", "mc_answer_idx": "A"}))
    assert score.metrics["accuracy"].value is None
    assert score.metrics["accuracy_of_all"].value == 0


def test_a_row_parsed_otherwise_is_counted(make_rows: Callable[..., list[Row]]) -> None:
    """A stored letter that the output does not show is counted."""
    row = {"Question": "q", "mc_output": "B", "mc_answer_idx": "A", "parsed_output": "A"}
    assert truthfulqa_letter.score(make_rows(row)).counts["num_parsed_otherwise"] == 1


def test_wrong_rows_are_refused_with_their_line(make_rows: Callable[..., list[Row]]) -> None:
    """A letter that is none, and a question twice, are refused naming the line."""
    row = {"Question": "q", "mc_output": "B", "mc_answer_idx": "A"}
    with pytest.raises(InputError, match=r"line 1: field 'mc_answer_idx' is 'AB'"):
        truthfulqa_letter.score(make_rows(row | {"mc_answer_idx": "AB"}))
    with pytest.raises(InputError, match=r"line 2: answers the same 'Question' as made\.jsonl, line 1"):
        truthfulqa_letter.score(make_rows(row, row))
