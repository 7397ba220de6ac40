"""Sampling: penalty, warpers, then the likeliest token or a seeded draw; the same tokens in every runtime.

argmax p/e with e ~ Exp(1) is distributed as p, without a host synchronisation. Two distributions under the same noise
draw the same token as often as is possible without knowing each other, up to a factor of two in what they differ: at
least (1 − TV)/(1 + TV). Source: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant
Speculative Decoding" (arXiv 2408.07978). Since the noise of a position does not depend on who drafts, or how far,
neither do the tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from proxytune.options import GenerationOptions

_MIN_TEMPERATURE = 1e-6


class Sampler:
    """Turns logits into tokens, for drafts and for the combined distribution alike.

    A token depends on its logits, the row's noise at its position in the answer, and the tokens that the row has read
    before: not on who asks, nor on other rows and positions.
    """

    def __init__(
        self,
        options: GenerationOptions,
        seeds: Sequence[int],
        prompts: Sequence[Sequence[int]],
        *,
        vocab_size: int,
        max_positions: int = 1,
        device: torch.device,
    ) -> None:
        """Take the options, and per row the seed and the base's prompt (for the repetition penalty).

        Args:
            options: Temperature, filters and penalty.
            seeds: One per row.
            prompts: One per row.
            vocab_size: Ids that may be chosen.
            max_positions: Most positions of a row between two calls of `prepare`.
            device: Of the logits.
        """
        self._warpers = warpers(options)
        self._penalty = options.repetition_penalty
        self._noise = ExponentialNoise(seeds, vocab_size, max_positions, device) if options.is_sampled else None
        self._seen = seen_ids(prompts, vocab_size, device) if self._penalty != 1.0 else None

    def prepare(self, lengths: Sequence[int], num_positions: int) -> None:
        """Draw the noise of the next `num_positions` of every row, whose answers have `lengths` tokens."""
        if self._noise is not None:
            self._noise.draw([length + num_positions for length in lengths])

    def sample(self, logits: Tensor, positions: Tensor, drafts: Tensor | None = None) -> Tensor:
        """Return the tokens `[B, T]` at `positions` `[B, T]` of the answers, consecutive ones, for logits `[B, T, V]`.

        `drafts` `[B, D]`, D ≥ T − 1, follow the row's last token: the last position comes after all of them, the one
        before it after all but one, and so on.
        """
        if self._seen is not None:
            logits = penalised(logits, _seen_with(self._seen, drafts, logits.shape[1]), self._penalty)
        if self._noise is None:
            return logits.argmax(-1)
        return draw(warped(logits, self._warpers), self._noise.at(positions))

    def update_seen(self, token_ids: Tensor, is_new: Tensor) -> None:
        """Count `token_ids` `[B, T]` as read where `is_new`, without a host synchronisation."""
        if self._seen is not None:
            marks = torch.zeros_like(self._seen, dtype=torch.uint8)
            marks.scatter_reduce_(1, token_ids, is_new.to(torch.uint8), reduce="amax")
            self._seen |= marks.bool()

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        if self._noise is not None:
            self._noise.select_rows(rows)
        if self._seen is not None:
            self._seen = self._seen[list(rows)]


class ExponentialNoise:
    """Exp(1) noise per row and position of its answer, each drawn once and kept in a ring `[B, max_positions, V]`."""

    def __init__(self, seeds: Sequence[int], vocab_size: int, max_positions: int, device: torch.device) -> None:
        """Make one generator per row; the last `max_positions` drawn of each row are held."""
        self._generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self._num_drawn = [0] * len(seeds)
        self._ring = torch.empty(len(seeds), max_positions, vocab_size, device=device)
        self._rows = torch.arange(len(seeds), device=device)[:, None]

    def draw(self, ends: Sequence[int]) -> None:
        """Draw every row's positions up to, not including, `ends[row]`."""
        size = self._ring.shape[1]
        for row, end in enumerate(ends):
            for position in range(self._num_drawn[row], end):
                self._ring[row, position % size].exponential_(generator=self._generators[row])
            self._num_drawn[row] = max(self._num_drawn[row], end)

    def at(self, positions: Tensor) -> Tensor:
        """Return the noise `[B, T, V]` at `positions` `[B, T]`, which have been drawn."""
        return self._ring[self._rows, positions % self._ring.shape[1]]

    def latest(self) -> Tensor:
        """Return the noise `[B, V]` drawn last, of rings of one position."""
        return self._ring[:, 0]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._generators = [self._generators[row] for row in rows]
        self._num_drawn = [self._num_drawn[row] for row in rows]
        self._ring = self._ring[list(rows)]
        self._rows = self._rows[: len(rows)]


def draw(scores: Tensor, noise: Tensor) -> Tensor:
    """Return the tokens `[...]` drawn from softmax(scores) `[..., V]` by Exp(1) noise of that shape.

    >>> draw(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([2.0, 1.0, 4.0])).item()  # 0.25, 0.3, 0.05
    1
    """
    return (scores.softmax(-1) / noise).argmax(-1)


def warpers(options: GenerationOptions) -> list[LogitsProcessor]:
    """Return transformers' warpers in its and vLLM's order, temperature, top-k, top-p, min-p; none for greedy rows."""
    if not options.is_sampled:
        return []
    chain: list[LogitsProcessor] = []
    if options.temperature != 1.0:
        # Below the floor float32 overflows, and the likeliest token is drawn either way.
        chain.append(TemperatureLogitsWarper(max(float(options.temperature), _MIN_TEMPERATURE)))
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        chain.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(MinPLogitsWarper(options.min_p))
    return chain


def warped(logits: Tensor, chain: Sequence[LogitsProcessor]) -> Tensor:
    """Return logits `[..., V]` after a chain of warpers."""
    scores = logits.reshape(-1, logits.shape[-1])
    for warper in chain:
        scores = warper(None, scores)
    return scores.view(logits.shape)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits `[..., V]` under CTRL's rule (arXiv 1909.05858): `seen` ones divided if positive, else multiplied.

    >>> penalised(torch.tensor([2.0, -2.0, 1.0]), torch.tensor([True, True, False]), 2.0).tolist()
    [1.0, -4.0, 1.0]
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def seen_ids(rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Return the ids that each row holds, bool `[B, V]`; ids outside the shared ones are never chosen, and left out."""
    pairs = [(row, token_id) for row, ids in enumerate(rows) for token_id in ids if 0 <= token_id < vocab_size]
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    index = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
    seen[index[:, 0], index[:, 1]] = True
    return seen


def _seen_with(seen: Tensor, drafts: Tensor | None, num_positions: int) -> Tensor:
    """Return the ids seen before each of `num_positions` `[B, T, V]`, with the drafts that come before it."""
    if drafts is None or drafts.shape[1] == 0:
        return seen[:, None]
    before = [drafts[:, : drafts.shape[1] - (num_positions - 1 - index)] for index in range(num_positions)]
    return torch.stack([seen.scatter(1, ids, True) if ids.shape[1] else seen for ids in before], dim=1)
