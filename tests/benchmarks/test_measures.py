"""Figures from rows: values, intervals, missing rows and paired comparisons, against numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

from benchmarks.measures import Measure, field, mcnemar, summarise
from benchmarks.tables import table

MEASURES = {"quiz": (Measure(name="accuracy", value=field("is_right"), missing="unparsable"),)}


def rows(**columns: list[bool | None]) -> list[dict[str, Any]]:
    """Return rows of one part with these outcomes per column."""
    return [
        {"part": "quiz", "column": column, "index": index, "is_right": outcome}
        for column, outcomes in columns.items()
        for index, outcome in enumerate(outcomes)
    ]


def test_missing_rows_are_counted_and_left_out() -> None:
    """A row without a number changes neither sum nor n; the cautious value counts it as wrong."""
    [result] = summarise(rows(base=[True, False, None, True]), MEASURES)["results"]
    assert (result["n"], result["num_missing"]) == (3, 1)
    assert result["value"] == pytest.approx(2 / 3)
    assert result["value_missing_as_zero"] == pytest.approx(2 / 4)
    assert result["ci_method"] == "wilson"
    assert result["ci95"] == pytest.approx((0.20766, 0.93851), abs=1e-5)


def test_a_column_without_any_number_has_no_value() -> None:
    """All rows missing give null, never zero."""
    metrics = summarise(rows(base=[None, None]), MEASURES)
    [result] = metrics["results"]
    assert (result["value"], result["ci95"], result["n"]) == (None, None, 0)
    assert "2 unparsable" in table(metrics)


def test_columns_are_compared_on_the_rows_both_have() -> None:
    """Pairs with a missing side are left out; the difference is second minus first, McNemar's p is exact."""
    first = [True, False, False, False, False, None]
    second = [False, True, True, True, True, True]
    [pair] = summarise(rows(base=first, steered=second), MEASURES)["comparisons"]
    assert (pair["first"], pair["second"], pair["n"]) == ("base", "steered", 5)
    assert pair["difference"] == pytest.approx(3 / 5)
    assert pair["mcnemar"] == {"only_first": 1, "only_second": 4, "p": pytest.approx(0.375)}


def test_intervals_repeat_for_a_seed() -> None:
    """The bootstrap is the same for the same seed, and holds the mean."""
    measures = {"quiz": (Measure(name="mass", value=field("mass"), is_share=False),)}
    given = [{"part": "quiz", "column": "base", "index": index, "mass": (index / 10) ** 0.5} for index in range(10)]
    once, again, other = (summarise(given, measures, seed=seed)["results"][0] for seed in (1, 1, 2))
    assert once["ci95"] == again["ci95"] != other["ci95"]
    assert once["ci95"][0] < once["value"] < once["ci95"][1]


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """McNemar's p is scipy's two-sided binomial test of one half on the questions that only one column has right."""
    for first in range(7):
        for second in range(7):
            wanted = binomtest(first, first + second).pvalue if first + second else 1.0
            assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-12)
