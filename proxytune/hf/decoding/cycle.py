"""One cycle on the device: draft, read, choose, move on. Nothing in it waits for the host, unless drafts are judged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.hf.decoding.ensemble import Ensemble
from proxytune.hf.decoding.prospect import Prospect
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.decoding.rowstate import RowState
from proxytune.sampling import Sampler


@dataclass(frozen=True)
class Cycle:
    """The parts of a batch that a cycle works on: its roles, how tokens are chosen, and where the rows are."""

    ensemble: Ensemble
    sampler: Sampler
    state: RowState

    def run(
        self,
        width: int,
        farthest: Sequence[int],
        first: Tensor | None = None,
        rooms: Sequence[int] = (),
        prospect: Prospect | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one cycle.

        Args:
            width: How many tokens of each row are read: the last one and `width − 1` drafts.
            farthest: The place of each row's last token in its answer, on the host; pinned slots do not need it.
            first: A draft model's logits `[B, 1, V]` behind the last token; None where the expert drafts.
            rooms: How many tokens each row can still take, on the host; only a base behind an API needs it.
            prospect: Told how sure the drafter is of each draft, it may end the draft before: the width is less then.

        Returns:
            What `RowState.take` gives, and the combined logits `[B, width, V]`.
        """
        reading = Reading(self.state.counts - 1, farthest, rooms)
        if width == 1:
            self.ensemble.begin(self.state.pending, reading)
            logits = self.ensemble.read(self.state.pending, reading)
            return self.state.take(self.sampler, logits, self.state.pending[:, :0]), logits
        drafts, behind = self._draft(width, reading, first, prospect)
        tokens = torch.cat([self.state.pending, drafts], dim=1)
        self.ensemble.begin(tokens, reading)
        # An expert's logits, which its drafts were chosen from, are part of the combination.
        expert = torch.cat(behind, dim=1) if first is None else None
        logits = self.ensemble.read(tokens, reading, expert)
        return self.state.take(self.sampler, logits, drafts), logits

    def _draft(
        self, width: int, reading: Reading, first: Tensor | None, prospect: Prospect | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return up to `width − 1` drafts `[B, D]`, and the drafter's logits `[B, 1, V]` behind each token read.

        An expert reads its last draft too; a draft model, whose logits serve for nothing else, does not.
        """
        token, drafts, logits = self.state.pending, self.state.pending[:, :0], []
        for step in range(width):
            if step == 0 and first is not None:
                logits.append(first)
            elif first is None or step < width - 1:
                logits.append(self.ensemble.draft(token, reading.ahead(step)))
            if step == width - 1:
                break
            token = self.sampler.sample(logits[-1], self.state.counts[:, None] + step, drafts)
            if prospect is not None and not prospect.admits(_probabilities(logits[-1], token)):
                break
            drafts = torch.cat([drafts, token], dim=1)
        return drafts, logits


def _probabilities(logits: Tensor, token: Tensor) -> list[float]:
    """Return, per row, what `logits` `[B, 1, V]` give `token` `[B, 1]`, 0 if NaN; the host waits for it."""
    found: list[float] = logits[:, 0].float().softmax(-1).gather(-1, token)[:, 0].nan_to_num(0.0).tolist()
    return found
