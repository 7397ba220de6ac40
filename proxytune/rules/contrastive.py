"""Contrastive decoding's plausibility mask over proxy tuning's sum.

Source: "Contrastive Decoding" (arXiv 2210.15097) and "Contrastive Decoding Improves Reasoning" (arXiv
2309.09117), where the score is (1 + β)·base − β·amateur: the pair (base, amateur) at strength β. The
papers' α is `beta` here. Difference: where nothing is steered nothing is masked, so that strength 0 is the base.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.rules import Rule, is_steered, register
from proxytune.rules.proxy import steered


@register("contrastive")
@dataclass(frozen=True)
class ContrastiveRule(Rule):
    """Proxy tuning among the tokens that the base finds plausible.

    Attributes:
        beta: Tokens whose probability is below this share of the base's best are ruled out; in (0, 1].
    """

    takes_differences: ClassVar[bool] = True

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.beta <= 1, "beta", "above 0, and at most 1")

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the sum, −inf where base is below its maximum + ln β; shapes as in `Rule.combine`."""
        base = base.float()
        is_implausible = base < base.amax(-1, keepdim=True) + math.log(self.beta)
        return steered(base, pairs, strengths).masked_fill(is_implausible & is_steered(strengths), -torch.inf)
