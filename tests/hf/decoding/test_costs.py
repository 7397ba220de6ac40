"""Costs of cycles by width: measured, between, beyond, and as a line."""

import pytest

from proxytune.hf.decoding.costs import Costs


def _costs(seconds: dict[int, float]) -> Costs:
    costs = Costs()
    for width in (1, 1, *seconds):  # the first two count for nothing
        costs.add(width, seconds.get(width, 99.0), 1)
    return costs


def test_widths_that_were_not_measured() -> None:
    """They lie on the line through their neighbours: between, above, and below the least."""
    costs = _costs({2: 10.0, 4: 14.0, 8: 30.0})
    assert [costs.of(width) for width in (1, 2, 3, 6, 9)] == [8.0, 10.0, 12.0, 22.0, 34.0]
    assert _costs({3: 5.0}).of(1) == 5.0


def test_the_least_of_the_latest_counts() -> None:
    """Noise only adds; what is old is forgotten, and a cold cycle is not remembered at all."""
    costs = _costs({1: 10.0})
    for seconds in (12.0, 11.0):
        costs.add(1, seconds, 1)
    costs.add(1, 3.0, 1, is_cold=True)
    assert costs.of(1) == 10.0
    for _ in range(7):
        costs.add(1, 15.0, 1)
    assert costs.of(1) == 15.0


def test_the_line_of_drafting_widths() -> None:
    """Least squares through what drafts; a single such width is joined with plain decoding; it never falls."""
    level, slope = _costs({1: 10.0, 2: 18.0, 4: 22.0, 6: 26.0}).line()
    assert (level, slope) == pytest.approx((14.0, 2.0))
    assert _costs({1: 10.0, 4: 22.0}).line() == pytest.approx((6.0, 4.0))
    assert _costs({1: 10.0, 2: 18.0, 4: 12.0}).line()[1] == 0.0


def test_the_throughput_is_plain_decodings_at_least() -> None:
    """Drafting at a loss does not lower what a draft must be worth; drafting that pays raises it."""
    costs = _costs({1: 10.0, 4: 20.0})
    assert costs.tokens_per_second(1) == pytest.approx(0.1)
    for _ in range(50):
        costs.add(4, 20.0, 4)
    assert costs.tokens_per_second(1) == pytest.approx(0.2, rel=0.1)
