"""Steering in probability space: p = p(base) + Σ α · (p(expert) − p(anti)).

With the base as the anti it is the mixture (1 − λ)·p(base) + λ·p(expert), λ = α: interpolation with a domain model, and
the form of kNN-LM (arXiv 1911.00172) and memory decoders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.rules import Rule, is_steered, over_tokens, register


@register("mixture")
@dataclass(frozen=True)
class MixtureRule(Rule):
    """Base's probabilities plus the sum over pairs of α · (expert's − anti's); what falls below 0 is 0."""

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the logarithms of the sum; shapes as in `Rule.combine`."""
        base = base.float()
        probs = base.softmax(-1)
        for index, (expert, anti) in enumerate(pairs):
            strength = over_tokens(strengths[..., index])
            shift = expert.float().softmax(-1).sub_(anti.float().softmax(-1)).mul_(strength)
            probs = probs + torch.where(strength != 0, shift, 0.0)
        logits = probs.clamp(min=0).log().masked_fill(base == -torch.inf, -torch.inf)
        return torch.where(is_steered(strengths), logits, base)
