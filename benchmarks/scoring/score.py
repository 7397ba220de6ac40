"""Result of a scorer: metrics with their intervals, and counts of the rows that could not be used."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.scoring.intervals import bootstrap, standard_error, wilson


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A mean over rows.

    Attributes:
        value: The mean; None where no row counts.
        n: Rows that count.
        low: Lower end of the 95 % interval; None where there is no interval.
        high: Its upper end.
        interval: Method of the interval: wilson or bootstrap.
        standard_error: Of the mean, with n - 1 in the variance; None where it says nothing beyond the interval.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    standard_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one file.

    Attributes:
        task: The scorer's name.
        n: Rows read.
        metrics: By name; the first is the headline.
        counts: Rows that are missing, unparsable, or differ from what the file itself says of them.
        notes: Facts a reader must know to compare the figures with others.
    """

    task: str
    n: int
    metrics: Mapping[str, Metric]
    counts: Mapping[str, int]
    notes: Sequence[str] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def share(outcomes: Iterable[bool]) -> Metric:
    """Return the share of true outcomes, with Wilson's interval.

    >>> share([True, True, False, False]).value
    0.5
    """
    marks = list(outcomes)
    if not marks:
        return Metric(value=None, n=0)
    num_true = sum(marks)
    low, high = wilson(num_true, len(marks))
    return Metric(value=num_true / len(marks), n=len(marks), low=low, high=high, interval="wilson")


def mean(values: Iterable[float], *, scale: float = 1.0) -> Metric:
    """Return the mean times a scale (100 for per cent), with its standard error and a bootstrap interval."""
    data = list(values)
    if not data:
        return Metric(value=None, n=0)
    low, high = bootstrap(data)
    error = standard_error(data)
    return Metric(
        value=scale * math.fsum(data) / len(data),
        n=len(data),
        low=scale * low,
        high=scale * high,
        interval="bootstrap",
        standard_error=None if math.isnan(error) else scale * error,
    )


def num_missing(num_rows: int, *, benchmark_rows: int) -> int:
    """Return how many of the benchmark's rows a file lacks (questions are not compared)."""
    return max(0, benchmark_rows - num_rows)
