"""Figures of the experiment from its rows: nats per token, the gap closed, each with a bootstrap interval over rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.real.measuring import steered

_RESAMPLES = 10_000
_Array = Any
Interval = tuple[float, float, float]


def choose_alpha(rows: Sequence[dict[str, Any]], alphas: Sequence[float]) -> float:
    """Return the strength with the fewest nats on validation rows."""
    return min(alphas, key=lambda alpha: sum(row["nats"][steered(alpha)] for row in rows))


def nats_per_token(runs: Sequence[Sequence[dict[str, Any]]], systems: Sequence[str]) -> Interval:
    """Return nats per token and its interval; `systems` names the system in each run (a seed), which are averaged."""
    return _interval(runs, lambda weights: _mean_nats(runs, systems, weights))


def gap_closed(runs: Sequence[Sequence[dict[str, Any]]], systems: Sequence[str]) -> Interval:
    """Return the share of the nats between M and M tuned directly that steering gains, and its interval.

    Each run's share is its own; what is returned is their mean, with the same rows drawn in every run.
    """

    def share(weights: _Array) -> _Array:
        shares = []
        for run, system in zip(runs, systems, strict=True):
            base, direct, chosen = (weights @ _column(run, name) for name in ("base", "direct", system))
            shares.append((base - chosen) / (base - direct))
        return np.mean(shares, axis=0)

    return _interval(runs, share)


def token_share(runs: Sequence[Sequence[dict[str, Any]]], systems: Sequence[str], count: str) -> Interval:
    """Return the share of answer tokens counted under `count` ("changed" or "drafts_kept"), and its interval."""

    def share(weights: _Array) -> _Array:
        shares = []
        for run, system in zip(runs, systems, strict=True):
            counted = np.array([row[count][system] for row in run], dtype=float)
            shares.append((weights @ counted) / (weights @ _tokens(run)))
        return np.mean(shares, axis=0)

    return _interval(runs, share)


def _mean_nats(runs: Sequence[Sequence[dict[str, Any]]], systems: Sequence[str], weights: _Array) -> _Array:
    of_runs = [
        (weights @ _column(run, system)) / (weights @ _tokens(run)) for run, system in zip(runs, systems, strict=True)
    ]
    return np.mean(of_runs, axis=0)


def _interval(runs: Sequence[Sequence[dict[str, Any]]], statistic: Callable[[_Array], _Array]) -> Interval:
    """Return a statistic of all rows and its 95 % percentile bootstrap interval; it is given weights `[..., rows]`."""
    num_rows = len(runs[0])
    counts = np.random.default_rng(0).multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=_RESAMPLES)
    low, high = np.percentile(statistic(counts.astype(float)), (2.5, 97.5))
    return float(statistic(np.ones(num_rows))), float(low), float(high)


def _column(run: Sequence[dict[str, Any]], system: str) -> _Array:
    return np.array([row["nats"][system] for row in run], dtype=float)


def _tokens(run: Sequence[dict[str, Any]]) -> _Array:
    return np.array([row["num_tokens"] for row in run], dtype=float)
