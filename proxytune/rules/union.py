"""Union of model arithmetic: an expert raises what it likes better than its anti, and lowers nothing.

Source: "Controlled Text Generation via Language Model Arithmetic" (arXiv 2311.14479): union(P, Q) ∝
max(P, Q). Base + α · (max(log p(expert), log p(anti)) − log p(anti)) is union(base, expert) where the anti is the base
and α = 1; their M − λ·union(X, M), divided by its sum of weights 1 − λ, is that at α = −λ/(1 − λ).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.rules import Rule, register
from proxytune.rules.proxy import steer


@register("union")
@dataclass(frozen=True)
class UnionRule(Rule):
    """Base plus the sum over pairs of α · max(0, log p(expert) − log p(anti))."""

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the sum; shapes as in `Rule.combine`."""
        logits = base.float()
        for index, pair in enumerate(pairs):
            expert, anti = (entry.float().log_softmax(-1) for entry in pair)
            logits = steer(logits, torch.maximum(expert, anti), anti, strengths[..., index])
        return logits
