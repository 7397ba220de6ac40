"""Intersection of model arithmetic: an expert lowers what it likes less than its anti, and raises nothing.

Source: "Controlled Text Generation via Language Model Arithmetic" (arXiv 2311.14479): intersection(P, Q) ∝
min(P, Q), which is that of base and expert where the anti is the base and α = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.rules import Rule, register
from proxytune.rules.proxy import steer


@register("intersection")
@dataclass(frozen=True)
class IntersectionRule(Rule):
    """Base plus the sum over pairs of α · min(0, log p(expert) − log p(anti))."""

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the sum; shapes as in `Rule.combine`."""
        logits = base.float()
        for index, pair in enumerate(pairs):
            expert, anti = (entry.float().log_softmax(-1) for entry in pair)
            logits = steer(logits, torch.minimum(expert, anti), anti, strengths[..., index])
        return logits
