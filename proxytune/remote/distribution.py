"""Queries to a remote base, and what comes back: next-token distributions, as far as they are seen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxytune.errors import InputError

# vLLM writes -inf, which JSON does not have, as this.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Query:
    """One row's question.

    Attributes:
        token_ids: Everything the base reads.
        num_positions: Number of distributions requested: after each of the last prefixes, the last after all ids.

    Raises:
        InputError: More positions than ids, or none.
    """

    token_ids: tuple[int, ...]
    num_positions: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.num_positions <= len(self.token_ids):
            raise InputError(
                f"num_positions is {self.num_positions} for {len(self.token_ids)} tokens: "
                "it must be at least 1 and at most the number of tokens."
            )

    def prefixes(self) -> list["Query"]:
        """Return one question for each wanted position, in their order."""
        length = len(self.token_ids)
        return [Query(self.token_ids[: length - left], 1) for left in reversed(range(self.num_positions))]


@dataclass(frozen=True, eq=False)
class Distribution:
    """A next-token distribution as far as the server showed it, by falling probability.

    Attributes:
        token_ids: int64 [k], each once; ids not among them were not seen, or have no probability.
        logprobs: float32 [k], natural logarithms, normalised over the whole vocabulary by the server.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]

    @classmethod
    def of(cls, token_ids: ArrayLike, logprobs: ArrayLike, *, vocab_size: int | None = None) -> "Distribution":
        """Return a sorted distribution, without ids beyond `vocab_size` and without those of no probability."""
        ids, values = np.asarray(token_ids, dtype=np.int64), np.asarray(logprobs, dtype=np.float64)
        order = np.lexsort((ids, -values))
        ids, values = ids[order], values[order]
        is_kept = values > LEAST_LOGPROB
        if vocab_size is not None:
            is_kept &= ids < vocab_size
        return cls(ids[is_kept], values[is_kept].astype(np.float32))

    @property
    def mass(self) -> float:
        """The share of probability that was seen, at most 1."""
        return min(1.0, float(np.exp(self.logprobs.astype(np.float64)).sum()))
