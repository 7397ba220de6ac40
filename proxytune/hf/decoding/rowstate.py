"""Where every row of a batch is, on the device: written in place, so that a captured step finds it where it was."""

from collections.abc import Sequence

import torch
from torch import Tensor

from proxytune.sampling import Sampler


class RowState:
    """The rows of a batch.

    Attributes:
        counts: `[B]`, tokens of each answer.
        limits: `[B]`, most tokens; what ends a row makes this its count.
        pending: `[B, 1]`, the last token of each, which no role has read yet.
    """

    def __init__(self, limits: Sequence[int], eos_token_ids: Sequence[int], device: torch.device) -> None:
        """`limits`: most tokens per row; `eos_token_ids`: what ends one."""
        self.counts = torch.zeros(len(limits), dtype=torch.long, device=device)
        self.limits = torch.tensor(limits, device=device)
        self.pending = torch.zeros(len(limits), 1, dtype=torch.long, device=device)
        self._ends = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)

    def places(self, width: int) -> Tensor:
        """Return the next `width` places of every row, `[B, width]`."""
        return self.counts[:, None] + torch.arange(width, device=self.counts.device)

    def take(self, sampler: Sampler, logits: Tensor, drafts: Tensor) -> Tensor:
        """Choose from the combined logits `[B, w, V]`; keep what `drafts` `[B, w − 1]` got right, and one token more.

        Returns:
            `[B, w + 3]`, without waiting for the device: the tokens chosen, how many drafts were right, how many tokens
            count, and whether the row has ended.
        """
        width = logits.shape[1]
        tokens = sampler.sample(logits, self.places(width), drafts)
        agreed = (tokens[:, :-1] == drafts).long().cumprod(1).sum(1)
        new, has_end = accepted(tokens, agreed, self.limits - self.counts, self._ends)
        self.counts += new
        self.limits.copy_(torch.where(has_end, self.counts, self.limits))
        last = tokens.gather(1, (new - 1).clamp(min=0)[:, None])
        self.pending.copy_(torch.where(new[:, None] > 0, last, self.pending))
        sampler.update_seen(tokens, torch.arange(width, device=tokens.device) < new[:, None])
        is_done = self.counts >= self.limits
        return torch.cat([tokens, agreed[:, None], new[:, None], is_done[:, None].long()], dim=1)

    def end(self, row: int) -> None:
        """Let a row have no more tokens."""
        self.limits[row] = self.counts[row]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(rows, device=self.counts.device)
        self.counts, self.limits, self.pending = self.counts[index], self.limits[index], self.pending[index]


def accepted(tokens: Tensor, agreed: Tensor, room: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of `tokens` `[B, w]` count, `[B]`, and in which rows one of them ends the text.

    The drafts that were right and one more; no more than there is room for; nothing behind an end-of-text token.

    >>> accepted(torch.tensor([[4, 5, 6], [4, 2, 6]]), torch.tensor([1, 2]), torch.tensor([9, 9]), torch.tensor([2]))
    (tensor([2, 2]), tensor([False,  True]))
    """
    count = torch.minimum(agreed + 1, room)
    is_end = (tokens[:, :, None] == ends).any(-1)
    first_end = torch.where(is_end.any(1), is_end.long().argmax(1), tokens.shape[1])
    has_end = first_end < count
    return torch.where(has_end, first_end + 1, count), has_end
