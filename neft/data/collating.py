"""Examples as a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neft.data.examples import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PaddingCollator:
    """Pads on the right to the longest example of the batch."""

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Returns int64 `input_ids`, `attention_mask` and `labels`, `[B, T]`; labels are `IGNORED` at padding."""
        import torch

        width = max(len(example.input_ids) for example in examples)
        rows = [(example, width - len(example.input_ids)) for example in examples]
        return {
            "input_ids": torch.tensor([e.input_ids + [self.pad_id] * gap for e, gap in rows]),
            "attention_mask": torch.tensor([[1] * len(e.input_ids) + [0] * gap for e, gap in rows]),
            "labels": torch.tensor([e.labels + [IGNORED] * gap for e, gap in rows]),
        }
