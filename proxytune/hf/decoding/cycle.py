"""One cycle on the device: draft, read, choose, move on. Nothing in it waits for the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.hf.decoding.choice import Choice
from proxytune.hf.decoding.ensemble import Ensemble
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.decoding.rowstate import RowState


@dataclass(frozen=True)
class Cycle:
    """The parts of a batch that a cycle works on: its roles, how tokens are chosen, and where the rows are."""

    ensemble: Ensemble
    choice: Choice
    state: RowState

    def run(
        self, width: int, farthest: Sequence[int], first: Tensor | None = None, wanted: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Run one cycle.

        Args:
            width: How many tokens of each row are read: the last one and `width − 1` drafts.
            farthest: The place of each row's last token in its answer, on the host; pinned slots do not need it.
            first: A draft model's logits `[B, 1, V]` behind the last token; None where the expert drafts.
            wanted: How many of the tokens count in each row, on the host; only a base behind an API needs it.

        Returns:
            What `RowState.take` gives, and the combined logits `[B, width, V]`.
        """
        reading = Reading(self.state.counts - 1, farthest, wanted)
        if width == 1:
            self.ensemble.begin(self.state.pending, reading)
            logits = self.ensemble.read(self.state.pending, reading)
            return self.state.take(self.choice, logits, self.state.pending[:, :0]), logits
        drafts, behind = self._draft(width, reading, first)
        tokens = torch.cat([self.state.pending, drafts], dim=1)
        self.ensemble.begin(tokens, reading)
        expert = None
        if first is None:
            # The expert reads its last draft too: its logits there are part of the combination.
            behind.append(self.ensemble.draft(drafts[:, -1:], reading.ahead(width - 1)))
            expert = torch.cat(behind, dim=1)
        logits = self.ensemble.read(tokens, reading, expert)
        return self.state.take(self.choice, logits, drafts), logits

    def _draft(self, width: int, reading: Reading, first: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return `width − 1` drafts `[B, width − 1]`, and the logits `[B, 1, V]` that each was chosen from."""
        token, drafts, logits = self.state.pending, self.state.pending[:, :0], []
        for step in range(width - 1):
            if step == 0 and first is not None:
                logits.append(first)
            else:
                logits.append(self.ensemble.draft(token, reading.ahead(step)))
            token = self.choice.choose(logits[-1], self.state.counts[:, None] + step, drafts)
            drafts = torch.cat([drafts, token], dim=1)
        return drafts, logits
