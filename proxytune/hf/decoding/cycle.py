"""One cycle on the device: draft, read, choose, move on. Nothing in it waits for the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.hf.decoding.choice import Choice
from proxytune.hf.decoding.ensemble import Ensemble, Reading
from proxytune.hf.decoding.rowstate import RowState


@dataclass(frozen=True)
class Cycle:
    """The parts of a batch that a cycle works on: its roles, how tokens are chosen, and where the rows are."""

    ensemble: Ensemble
    choice: Choice
    state: RowState

    def run(self, width: int, farthest: Sequence[int], first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run one cycle.

        Args:
            width: How many tokens of each row are read: the last one and `width − 1` drafts.
            farthest: The place of each row's last token in its answer, on the host; pinned slots do not need it.
            first: A draft model's logits `[B, 1, V]` behind the last token; None where the expert drafts.

        Returns:
            What `RowState.take` gives, and the combined logits `[B, width, V]`.
        """
        reading = Reading(self.state.counts - 1, farthest)
        if width == 1:
            logits = self.ensemble.read(self.state.pending, reading)
            return self.state.take(self.choice, logits, self.state.pending[:, :0]), logits
        drafts, expert = self._draft(width, reading, first)
        tokens = torch.cat([self.state.pending, drafts], dim=1)
        logits = self.ensemble.read(tokens, reading, expert)
        return self.state.take(self.choice, logits, drafts), logits

    def _draft(self, width: int, reading: Reading, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `width − 1` drafts `[B, width − 1]`, and the expert's logits for what is read if it drafted."""
        token, drafts, logits = self.state.pending, self.state.pending[:, :0], []
        # The expert reads its last draft too: its logits there are part of the combination.
        for step in range(width if first is None else width - 1):
            if step == 0 and first is not None:
                logits.append(first)
            else:
                logits.append(self.ensemble.draft(token, reading.ahead(step)))
            if step < width - 1:
                token = self.choice.choose(logits[-1], self.state.counts[:, None] + step, drafts)
                drafts = torch.cat([drafts, token], dim=1)
        return drafts, torch.cat(logits, dim=1) if first is None else None
