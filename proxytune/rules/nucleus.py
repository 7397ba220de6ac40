"""DExperts' order of things: the base's nucleus is taken first, and steering chooses within it.

Source: DExperts (arXiv 2105.03023), which filters the base's logits by top-p. Difference: where nothing is
steered nothing is masked, so that strength 0 is the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from proxytune.rules import Rule, is_steered, register
from proxytune.rules.proxy import steered


@register("nucleus")
@dataclass(frozen=True)
class NucleusRule(Rule):
    """Proxy tuning among the likeliest tokens of the base.

    Attributes:
        p: Probability that they have together at least, in (0, 1]; 1 keeps all.
    """

    takes_differences: ClassVar[bool] = True

    p: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.p <= 1, "p", "above 0, and at most 1")

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the sum, −inf outside base's nucleus; shapes as in `Rule.combine`."""
        base = base.float()
        rows = base.reshape(-1, base.shape[-1])
        is_outside = (TopPLogitsWarper(self.p)(None, rows) == -torch.inf).view(base.shape)
        return steered(base, pairs, strengths).masked_fill(is_outside & is_steered(strengths), -torch.inf)
