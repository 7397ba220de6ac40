"""Proxy tuning: a base distribution moved by the log-ratio of an expert and an anti.

Source: "Tuning Language Models by Proxy" (arXiv 2401.08565), eq. 1, with the strength α of DExperts (arXiv 2105.03023).
Difference: tokens of probability 0 are defined here, see `steer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.rules import register


@register("proxy")
@dataclass(frozen=True)
class ProxyRule:
    """Base plus the sum over pairs of α · (expert − anti)."""

    is_elementwise: ClassVar[bool] = True

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return base moved by each pair in turn; shapes as in `Rule.combine`."""
        logits = base.float()
        for index, (expert, anti) in enumerate(pairs):
            logits = steer(logits, expert, anti, strengths[:, index])
        return logits


def steer(base: Tensor, expert: Tensor, anti: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Return `base + alpha * (expert - anti)` in float32.

    Identities: α = 0 or expert ≡ anti gives base; a constant added to a row of any argument changes no probability.
    Infinities never become NaN: −inf in base survives; −inf in both expert and anti adds nothing; a token that exactly
    one of them rules out is ruled out where the signed ratio is 0, and left as the base has it where the ratio would be
    infinite (no distribution can be normalised over that). NaN of any argument stays NaN.

    Args:
        base: Logits `[..., V]`, any float dtype.
        expert: Logits `[..., V]`.
        anti: Logits `[..., V]`.
        alpha: Strength, a number or `[B]` over the first dimension. Rows where it is 0 do not read expert and anti, so
            these need not be numbers there.

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
        strength = strength.reshape(-1, *[1] * (base.dim() - 1))
    expert, anti = expert.to(base.device).float(), anti.to(base.device).float()
    shift = strength * (expert - anti)
    # Equality covers −inf − −inf, and not the NaN of a role; a strength of 0 covers 0 · inf and 0 · NaN.
    shift.masked_fill_((expert == anti) | (strength == 0), 0.0)
    shift.masked_fill_(shift == torch.inf, 0.0)
    return base + shift
