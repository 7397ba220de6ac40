"""Strengths of steering, one per row and pair; divergences between the distributions of roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import OptionError
from proxytune.options import pair_alphas

AlphaLike = float | Tensor | Sequence[float]


@dataclass(frozen=True, eq=False)
class Strengths:
    """α of every row and pair of a batch, checked.

    Attributes:
        values: `[B, P]`, float32, on the CPU unless a caller gave a tensor of another device; `[1, P]` for every row.
        active: For each pair whether any row has another strength than 0; the others need not be run.
    """

    values: Tensor
    active: tuple[bool, ...]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[float]]) -> "Strengths":
        """Return them from checked rows of one number per pair.

        >>> Strengths.of_rows([(1.0, 0.0), (0.5, 0.0)]).active
        (True, False)
        """
        active = tuple(any(row[pair] != 0 for row in rows) for pair in range(len(rows[0])))
        return cls(torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1), active)

    @classmethod
    def of(cls, alpha: AlphaLike, num_pairs: int) -> "Strengths":
        """Return them from a number, one number per pair, or a tensor: a number, `[B]`, or `[B, P]`.

        Raises:
            OptionError: Not finite, or of another shape.
        """
        if not isinstance(alpha, Tensor):
            return cls.of_rows([pair_alphas(alpha, num_pairs)])
        # On another device a look would wait for it, and a graph being compiled cannot look at all.
        if alpha.device.type == "cpu" and not torch.compiler.is_compiling():
            entries = alpha.tolist() if alpha.dim() else [alpha.item()]
            return cls.of_rows([pair_alphas(entry, num_pairs) for entry in entries])
        values = alpha.float() if alpha.dim() == 2 else alpha.float().reshape(-1, 1).expand(-1, num_pairs)
        if values.shape[1] != num_pairs:
            raise OptionError(
                f"alpha has the shape {list(alpha.shape)} for {num_pairs} pair(s): pass [B] or [B, pairs]."
            )
        return cls(values, (True,) * num_pairs)

    def of_active_pairs(self, device: torch.device) -> Tensor:
        """Return the columns `[B, active pairs]` of the pairs that are run."""
        columns = [pair for pair, is_active in enumerate(self.active) if is_active]
        return self.values[:, columns].to(device)


def tables_of(logits: Any, pair: tuple[int, int | None]) -> tuple[Tensor, Tensor]:
    """Return the logits of a pair's expert and anti from those of all roles, by index; an anti that is none is 0."""
    expert, anti = pair
    table: Tensor = logits[expert]
    return table, table.new_zeros(1).expand_as(table) if anti is None else logits[anti]


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
