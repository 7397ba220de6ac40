"""Proxy tuning: a base distribution moved by the log-ratio of an expert and an anti.

Source: "Tuning Language Models by Proxy" (arXiv 2401.08565), eq. 1, with the strength α of DExperts (arXiv 2105.03023).
Difference: tokens of probability 0 are defined here, see `steer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.rules import Rule, register


@register("proxy")
@dataclass(frozen=True)
class ProxyRule(Rule):
    """Base plus the sum over pairs of α · (expert − anti)."""

    combines_per_token: ClassVar[bool] = True
    takes_differences: ClassVar[bool] = True

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return base moved by each pair in turn; shapes as in `Rule.combine`."""
        return steered(base, pairs, strengths)


def steered(base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
    """Return base moved by each pair in turn, for rules that start from that; shapes as in `Rule.combine`."""
    logits = base.float()
    for index, (expert, anti) in enumerate(pairs):
        logits = steer(logits, expert, anti, strengths[..., index])
    return logits


def steer(base: Tensor, expert: Tensor, anti: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Return `base + alpha * (expert - anti)` in float32.

    Identities: α = 0 or expert ≡ anti gives base; a constant added to a row of any argument changes no probability.
    Infinities never become NaN: −inf in base survives; −inf in both expert and anti adds nothing; a token that exactly
    one of them rules out is ruled out where the signed ratio is 0, and left as the base has it where the ratio would be
    infinite (no distribution can be normalised over that). NaN in base stays; NaN in expert or anti makes its row NaN.

    Args:
        base: Logits `[..., V]`, any float dtype.
        expert: Logits `[..., V]`.
        anti: Logits `[..., V]`.
        alpha: Strength, a number, or `[B]` or `[B, T]` over the first dimensions. Expert and anti are not read
            where it is 0, so they need not be numbers there.

    Returns:
        Logits `[..., V]`, float32, on the device of base.

    >>> import torch
    >>> base, expert, anti = torch.tensor([[1., 2.]]), torch.tensor([[0., 3.]]), torch.tensor([[1., 1.]])
    >>> steer(base, expert, anti, 0.5).tolist()
    [[0.5, 3.0]]
    """
    base = base.float()
    if not isinstance(alpha, Tensor) and alpha == 0:
        return base
    strength = torch.as_tensor(alpha, dtype=torch.float32, device=base.device)
    if strength.dim():
        strength = strength.reshape(*strength.shape, *[1] * (base.dim() - strength.dim()))
    expert, anti = expert.to(base.device).float(), anti.to(base.device).float()
    # A maximum is NaN where any value is; −inf − −inf, 0 · inf and an infinite ratio are not the roles' NaN, and add 0.
    is_broken = (expert.amax(-1, keepdim=True) + anti.amax(-1, keepdim=True)).isnan() & (strength != 0)
    shift = ((expert - anti) * strength).nan_to_num(nan=0.0, posinf=0.0, neginf=-torch.inf)
    return shift.add_(base).add_(torch.where(is_broken, torch.nan, 0.0))
