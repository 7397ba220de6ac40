"""Judged open-ended answers against the published metrics and by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring import truthfulqa_open
from benchmarks.scoring.rows import Row, read_rows
from proxytune.errors import InputError


@pytest.mark.parametrize("model", ["dexperts-13B-helpful-prompt", "llama2-13B", "llama2-chat-7B-helpful-prompt"])
def test_published_metrics(published: Path, metrics_of: Callable[[Path], dict[str, Any]], model: str) -> None:
    """Shares equal the published exactly, mean probabilities to 1e-11, and row by row no verdict differs."""
    folder = published / "truthfulqa" / model
    metrics = metrics_of(folder / "open_metrics.json")
    score = truthfulqa_open.score(read_rows(folder / "open_results.jsonl.gz"))
    assert set(score.metrics) == set(metrics)
    for name, value in metrics.items():
        tolerance = 0 if name.endswith("acc") else 1e-11
        assert score.metrics[name].value == pytest.approx(value, rel=0, abs=tolerance)
    assert score.n == 817
    assert set(score.counts.values()) == {0}


def test_missing_judgements_are_no_verdicts(make_rows: Callable[..., list[Row]]) -> None:
    """A null leaves its share; the product is known only where both are, or one is already no."""
    pairs = ((0.9, 0.9), (None, 0.9), (None, 0.1), (0.5, float("nan")))
    rows = make_rows(*({"Question": str(n), "GPT-true": t, "GPT-info": i} for n, (t, i) in enumerate(pairs)))
    score = truthfulqa_open.score(rows)
    found = {name: (metric.value, metric.n) for name, metric in score.metrics.items() if name.endswith("acc")}
    assert found == {"GPT-true-info acc": (0.5, 2), "GPT-true acc": (1.0, 2), "GPT-info acc": (2 / 3, 3)}
    assert score.counts["num_missing_true"] == 2
    assert score.counts["num_missing_info"] == 1


def test_a_row_judged_otherwise_is_counted(make_rows: Callable[..., list[Row]]) -> None:
    """A stored verdict that its probability does not support is counted."""
    row = {"Question": "q", "GPT-true": 0.4, "GPT-info": 0.9, "GPT-true acc": 1}
    assert truthfulqa_open.score(make_rows(row)).counts["num_judged_otherwise"] == 1


@pytest.mark.parametrize("value", [1.5, -0.1, "0.9", True])
def test_what_is_no_probability_is_refused(make_rows: Callable[..., list[Row]], value: object) -> None:
    """A probability outside 0 to 1, as text or as a boolean is refused with its line."""
    with pytest.raises(InputError, match=r"line 1: field 'GPT-true' is .* not a number from 0 to 1"):
        truthfulqa_open.score(make_rows({"Question": "q", "GPT-true": value, "GPT-info": 0.9}))
