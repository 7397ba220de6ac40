"""Counts of rows learned, cut and left out, by reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from neft.data.examples import IGNORED, Example

_PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True)
class LengthStatistics:
    """Lengths in tokens.

    Attributes:
        mean: Tokens per row.
        percentiles: The smallest length that at least so many percent of the rows do not exceed (nearest rank).
        longest: The longest row.
    """

    mean: float
    percentiles: dict[int, int]
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> LengthStatistics:
        """Returns the statistics of at least one length.

        >>> LengthStatistics.of([4, 1, 2, 3])
        LengthStatistics(mean=2.5, percentiles={50: 2, 90: 4, 95: 4, 99: 4}, longest=4)
        """
        ordered = sorted(lengths)
        ranks = {percent: math.ceil(percent * len(ordered) / 100) - 1 for percent in _PERCENTS}
        percentiles = {percent: ordered[rank] for percent, rank in ranks.items()}
        return cls(sum(ordered) / len(ordered), percentiles, ordered[-1])


@dataclass(frozen=True)
class DataReport:
    """Counts of rows learned, cut and left out.

    Attributes:
        num_rows: Rows read.
        num_kept: Rows that are trained on.
        num_truncated: Of these, rows cut at the window.
        dropped: Rows left out, by reason; reasons that did not occur are absent.
        num_tokens: Tokens in the kept rows.
        num_learned_tokens: Of these, tokens with a loss.
        lengths: Of every row that has something to learn, before the window cut or dropped it.
    """

    num_rows: int
    num_kept: int
    num_truncated: int
    dropped: dict[str, int]
    num_tokens: int
    num_learned_tokens: int
    lengths: LengthStatistics

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        values = asdict(self)
        values["lengths"]["percentiles"] = {f"p{k}": v for k, v in self.lengths.percentiles.items()}
        return values


@dataclass(frozen=True)
class TokenizedData:
    """The examples that fit the window, and how many rows did not.

    Attributes:
        examples: At least one.
        num_dropped: Rows left out, for whatever reason.
        num_truncated: Examples cut at the window.
        dropped: Rows left out, by reason.
        full_lengths: Tokens of every row that has something to learn, before the window.
        end_ids: The last tokens of the rows that end with something learned, before the window.
    """

    examples: list[Example]
    num_dropped: int
    num_truncated: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    full_lengths: Sequence[int] = ()
    end_ids: frozenset[int] = frozenset()

    @property
    def mean_length(self) -> float:
        """Tokens per example."""
        return sum(len(example.input_ids) for example in self.examples) / len(self.examples)

    def report(self) -> DataReport:
        """Returns what became of the rows."""
        lengths = [len(example.input_ids) for example in self.examples]
        return DataReport(
            num_rows=len(self.examples) + self.num_dropped,
            num_kept=len(self.examples),
            num_truncated=self.num_truncated,
            dropped=dict(self.dropped),
            num_tokens=sum(lengths),
            num_learned_tokens=sum(len(e.labels) - e.labels.count(IGNORED) for e in self.examples),
            lengths=LengthStatistics.of(self.full_lengths or lengths),
        )
