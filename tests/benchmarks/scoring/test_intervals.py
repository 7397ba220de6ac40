"""Confidence intervals by hand and by simulation."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from benchmarks.scoring.intervals import bootstrap, standard_error, wilson


@pytest.mark.parametrize(("num_right", "n"), [(0, 10), (8, 10), (348, 1319), (817, 817)])
def test_wilson_equals_scipy(num_right: int, n: int) -> None:
    """Wilson's interval equals SciPy's."""
    expected = stats.binomtest(num_right, n).proportion_ci(0.95, method="wilson")
    assert wilson(num_right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_trials() -> None:
    """Nothing seen, nothing known: from 0 to 1."""
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval() -> None:
    """The same seed gives the same interval, and for 2,000 values it is the normal one to a tenth of its width."""
    values = np.random.default_rng(1).exponential(size=2000).tolist()
    low, high = bootstrap(values, seed=3)
    assert (low, high) == bootstrap(values, seed=3)
    middle, half = float(np.mean(values)), 1.96 * standard_error(values)
    assert abs(low - (middle - half)) < 0.2 * half
    assert abs(high - (middle + half)) < 0.2 * half


def test_bootstrap_of_equal_values() -> None:
    """Values that are all alike have an interval of no width; no value has none at all."""
    assert bootstrap([0.25] * 7) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no value"):
        bootstrap([])


def test_wilson_covers() -> None:
    """Of 2,000 draws of 60 coins with p = 0.3 between 92 and 98 % have p in their interval."""
    draws = random.Random(0)
    inside = 0
    for _ in range(2000):
        low, high = wilson(sum(draws.random() < 0.3 for _ in range(60)), 60)
        inside += low <= 0.3 <= high
    assert 0.92 < inside / 2000 < 0.98


def test_standard_error_by_hand() -> None:
    """Of 1, 2, 3 it is 1 / sqrt(3); one value has none."""
    assert standard_error([1, 2, 3]) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(standard_error([1]))
