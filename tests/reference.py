"""The reference: plain models, one row at a time, nothing cached, nothing padded, every step computed anew.

It shares no line with the package; `base + α · (expert − anti)` is written out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """Base and pairs of plain models; `width` ids are shared. Role ids come as base, expert, anti, and so on."""

    base: Any
    pairs: Sequence[tuple[Any, Any]]
    width: int

    def logits(self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float]) -> Tensor:
        """Return the combined logits `[V]` of the next token."""
        combined = self._last(self.base, role_ids[0])
        for number, (expert, anti) in enumerate(self.pairs):
            first = self._last(expert, role_ids[1 + 2 * number])
            second = self._last(anti, role_ids[2 + 2 * number])
            combined = combined + alphas[number] * (first - second)
        return combined

    def greedy(self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float], num_tokens: int) -> list[int]:
        """Return the likeliest continuation, taken token by token; no token ends it."""
        chosen: list[int] = []
        for _ in range(num_tokens):
            chosen.append(int(self.logits([[*ids, *chosen] for ids in role_ids], alphas).argmax()))
        return chosen

    def table(self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float], continuation: Sequence[int]) -> Tensor:
        """Return the log-probabilities `[T, V]` at each place of a continuation."""
        rows = [
            self.logits([[*ids, *continuation[:place]] for ids in role_ids], alphas).log_softmax(-1)
            for place in range(len(continuation))
        ]
        return torch.stack(rows)

    def logprobs(
        self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float], continuation: Sequence[int]
    ) -> list[float]:
        """Return the log-probability of each token of a continuation."""
        table = self.table(role_ids, alphas, continuation)
        return [float(table[place, token]) for place, token in enumerate(continuation)]

    def beams(
        self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float], num_beams: int, num_tokens: int
    ) -> list[tuple[list[int], float]]:
        """Return beam search's continuations of equal length, best first, with their summed log-probabilities."""
        beams: list[tuple[list[int], float]] = [([], 0.0)]
        for _ in range(num_tokens):
            longer = []
            for tokens, total in beams:
                scores = self.logits([[*ids, *tokens] for ids in role_ids], alphas).log_softmax(-1)
                longer += [([*tokens, index], total + float(score)) for index, score in enumerate(scores)]
            beams = sorted(longer, key=lambda beam: -beam[1])[:num_beams]
        return beams

    @torch.no_grad()
    def _last(self, model: Any, ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1, : self.width].float()
