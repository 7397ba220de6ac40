"""A linear layer with one LoRA adapter that acts on all rows, on none, or on the first half of them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Rows = Literal["expert", "anti", "pair"]


@dataclass
class RowChoice:
    """Rows that the adapter acts on: all ("expert"), none ("anti"), or the first half ("pair")."""

    which: Rows = "pair"


class AdaptedLinear(torch.nn.Module):
    """`base(x) + scaling · B A x`, the second term on the chosen rows only.

    Rows are the leading dimension, `[2B, T, D]` or flattened `[2B·T, D]`; in "pair" the first half are the expert's.
    Source: LoRA (arXiv 2106.09685), equation 3. Dropout is for training and left out.
    """

    def __init__(self, base_layer: Any, lora_a: Tensor, lora_b: Tensor, *, scaling: float, choice: RowChoice) -> None:
        """Wrap `base_layer` with A `[r, in]` and B `[out, r]`, all held by reference; `choice` is shared by a model."""
        super().__init__()
        self.base_layer = base_layer
        self.lora_a = lora_a
        self.lora_b = lora_b
        self.scaling = scaling
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        """Return `[…, out]` for `[…, in]`, in the dtype of the base layer's output."""
        output: Tensor = self.base_layer(x)
        if self.choice.which == "anti":
            return output
        if self.choice.which == "expert":
            adapted = output
        else:
            half = x.shape[0] // 2
            x, adapted = x[:half], output[:half]
        inner = torch.nn.functional.linear(x.to(self.lora_a.dtype), self.lora_a)
        # In place: the output is this layer's own, and a copy of it is what a pair pass must not cost.
        adapted.add_(torch.nn.functional.linear(inner, self.lora_b), alpha=self.scaling)
        return output
