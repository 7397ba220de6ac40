"""The noise of sampling: one race of exponentials per row and place in its answer, drawn once and kept until decided.

argmax p/e with e ~ Exp(1) is distributed as p. Two distributions that run the same race choose the same token as often
as is possible without knowing each other, up to a factor of two in what they differ: at least (1 − TV)/(1 + TV).
Source: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding" (arXiv
2408.07978). Since the race of a place does not depend on who drafts, or how far, neither do the tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Races:
    """A ring of races per row: `[B, places, V]`, indexed by place in the answer modulo its size."""

    def __init__(self, seeds: Sequence[int], vocab_size: int, num_places: int, device: torch.device) -> None:
        """One generator per row; `num_places` are held at once."""
        self._generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self._drawn = [0] * len(seeds)
        self._ring = torch.empty(len(seeds), num_places, vocab_size, device=device)
        self._rows = torch.arange(len(seeds), device=device)[:, None]

    def draw(self, ends: Sequence[int]) -> None:
        """Draw the races of every row up to, not including, its place `ends[row]`."""
        size = self._ring.shape[1]
        for row, end in enumerate(ends):
            for place in range(self._drawn[row], end):
                self._ring[row, place % size].exponential_(generator=self._generators[row])
            self._drawn[row] = max(self._drawn[row], end)

    def at(self, places: Tensor) -> Tensor:
        """Return the races `[B, T, V]` at `places` `[B, T]`, which have been drawn."""
        return self._ring[self._rows, places % self._ring.shape[1]]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._generators = [self._generators[row] for row in rows]
        self._drawn = [self._drawn[row] for row in rows]
        self._ring = self._ring[list(rows)]
        self._rows = self._rows[: len(rows)]
