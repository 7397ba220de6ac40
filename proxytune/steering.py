"""The rule: a base distribution moved by the log-ratio of an expert and an anti.

Source: "Tuning Language Models by Proxy" (arXiv 2401.08565), eq. 1, with the strength α of DExperts (arXiv 2105.03023).
Nothing else in this package adds logits of different roles.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Alpha = float | Tensor


def steer(base: Tensor, expert: Tensor, anti: Tensor, alpha: Alpha = 1.0) -> Tensor:
    """Return `base + alpha * (expert - anti)` in float32.

    Identities: α = 0 or expert ≡ anti gives base; a constant added to a row of any argument changes no probability.
    Infinities never become NaN: −inf in base survives; −inf in both expert and anti adds nothing; a token that exactly
    one of them rules out is ruled out where the signed ratio is 0, and left as the base has it where the ratio would be
    infinite (no distribution can be normalised over that).

    Args:
        base: Logits `[..., V]`, any float dtype.
        expert: Logits `[..., V]`.
        anti: Logits `[..., V]`.
        alpha: Strength, a number or `[B]` over the first dimension. Rows where it is 0 do not read expert and anti, so
            these need not be finite there.

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
    difference = expert.to(base.device).float() - anti.to(base.device).float()
    shift = _broadcast(alpha, base) * difference
    # NaN is −inf − −inf, or 0·inf in a row whose α is 0; +inf is a ratio that cannot be normalised.
    return base + shift.masked_fill(torch.isnan(shift) | (shift == torch.inf), 0.0)


def steer_all(base: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Alpha]]) -> Tensor:
    """Return base moved by each `(expert, anti, alpha)` in turn: the differences add up.

    Shapes and dtypes as in `steer`; no pair at all gives base in float32.
    """
    logits = base.float()
    for expert, anti, alpha in pairs:
        logits = steer(logits, expert, anti, alpha)
    return logits


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first ‖ second) in nats, `[..., V]` logits to `[...]`, float32.

    >>> import torch
    >>> float(kl_divergence(torch.tensor([0., 0.]), torch.tensor([5., 5.])))
    0.0
    """
    log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    # A token that neither distribution allows contributes nothing: 0 · (−inf − −inf) is 0 here, not NaN.
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Return H(first, second) = −Σ p·log q in nats, `[..., V]` logits to `[...]`, float32."""
    log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return -(log_p.exp() * log_q).masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def _broadcast(alpha: Alpha, like: Tensor) -> Tensor:
    """Return α as a float32 tensor that broadcasts over `like` `[B, ..., V]`."""
    strength = torch.as_tensor(alpha, dtype=torch.float32, device=like.device)
    return strength.reshape(-1, *[1] * (like.dim() - 1)) if strength.dim() else strength
