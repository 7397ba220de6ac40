"""95 % confidence intervals: Wilson's for a share, the percentile bootstrap for a mean."""

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_RESAMPLES = 10_000
_CHUNK = 500


def wilson(num_successes: int, num_trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927); from 0 to 1 where there is no trial.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if num_trials == 0:
        return 0.0, 1.0
    share, weight = num_successes / num_trials, _Z * _Z / num_trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / num_trials + weight * weight / _Z**2 / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean: 10,000 resamples, the same for the same seed.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("the mean of no value has no interval.")
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed)
    means = [
        data[draws.integers(data.size, size=(_CHUNK, data.size))].mean(axis=1) for _ in range(_RESAMPLES // _CHUNK)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, with n - 1 in the variance; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1) / math.sqrt(len(values)))
