"""Choosing tokens at several places at once: penalty, warpers, then the likeliest or the winner of the place's race."""

from collections.abc import Sequence

import torch
from torch import Tensor

from proxytune.hf.decoding.races import Races
from proxytune.hf.sampling import warpers
from proxytune.options import GenerationOptions


class Choice:
    """What turns logits into tokens, the same for the draft and for the combined distribution.

    A token at a place depends on the logits there, the row's race there, and what the row has read before: not on who
    asks, nor on what else is asked at once.
    """

    def __init__(
        self,
        options: GenerationOptions,
        seeds: Sequence[int],
        prompts: Sequence[Sequence[int]],
        *,
        vocab_size: int,
        max_places: int,
        device: torch.device,
    ) -> None:
        """Take the options, and per row the seed and the base's prompt (for the repetition penalty).

        Args:
            options: Temperature, filters and penalty.
            seeds: One per row.
            prompts: One per row.
            vocab_size: Ids that may be chosen.
            max_places: Most places that are asked for at once.
            device: Of the logits.
        """
        self._warpers = warpers(options) if options.is_sampled else []
        self._penalty = options.repetition_penalty
        self._races = Races(seeds, vocab_size, max_places, device) if options.is_sampled else None
        self._seen = _seen(prompts, vocab_size, device) if self._penalty != 1.0 else None

    def prepare(self, counts: Sequence[int], width: int) -> None:
        """Draw what the next `width` places of every row need; `counts` are the tokens that it has."""
        if self._races is not None:
            self._races.draw([count + width for count in counts])

    def choose(self, logits: Tensor, places: Tensor, drafts: Tensor | None = None) -> Tensor:
        """Return the tokens `[B, T]` at `places` `[B, T]`, consecutive ones, from logits `[B, T, V]`.

        `drafts` `[B, D]`, D ≥ T − 1, are what the row reads behind its last token; the last place comes after all of
        them, the one before it after all but one, and so on.
        """
        scores = logits if self._seen is None else self._penalised(logits, drafts)
        if self._races is None:
            return scores.argmax(-1)
        shape = scores.shape
        scores = scores.reshape(-1, shape[-1])
        for warper in self._warpers:
            scores = warper(None, scores)
        return (scores.softmax(-1).view(shape) / self._races.at(places)).argmax(-1)

    def note(self, token_ids: Tensor, is_new: Tensor) -> None:
        """Count `token_ids` `[B, T]` as read where `is_new`."""
        if self._seen is not None:
            _mark(self._seen, token_ids, is_new)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        if self._races is not None:
            self._races.keep(rows)
        if self._seen is not None:
            self._seen = self._seen[list(rows)]

    def _penalised(self, logits: Tensor, drafts: Tensor | None) -> Tensor:
        """Return logits under CTRL's rule (arXiv 1909.05858): seen tokens' divided if positive, else multiplied."""
        seen = self._seen
        if seen is None:
            return logits
        num_places = logits.shape[1]
        places = []
        for place in range(num_places):
            if drafts is None or drafts.shape[1] == 0:
                places.append(seen)
                continue
            read = drafts[:, : drafts.shape[1] - (num_places - 1 - place)]
            places.append(seen.scatter(1, read, True) if read.shape[1] else seen)
        penalised = torch.where(logits > 0, logits / self._penalty, logits * self._penalty)
        return torch.where(torch.stack(places, dim=1), penalised, logits)


def _seen(prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Return which ids each prompt holds, `[B, V]`; ids of the base's own behind the shared ones are never chosen."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        shared = torch.tensor([index for index in prompt if index < vocab_size], dtype=torch.long, device=device)
        seen[row, shared] = True
    return seen


def _mark(seen: Tensor, token_ids: Tensor, is_new: Tensor) -> None:
    """Set `seen[row, id]` where `is_new`, without a host synchronisation."""
    marks = torch.zeros_like(seen, dtype=torch.uint8)
    marks.scatter_reduce_(1, token_ids, is_new.to(torch.uint8), reduce="amax")
    seen |= marks.bool()
