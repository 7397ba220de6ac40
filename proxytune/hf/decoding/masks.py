"""Which keys a query sees when every row has a length of its own: those at its position and before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class LayerKinds:
    """The kinds of attention a model's layers have.

    Attributes:
        kinds: `FULL` and `SLIDING`, what of them occurs.
        window: How many keys a sliding layer sees.
        takes_dict: Whether the model reads one mask per kind.
    """

    kinds: frozenset[str]
    window: int | None
    takes_dict: bool

    @classmethod
    def of(cls, config: Any) -> "LayerKinds":
        """Return those of a transformers text config."""
        window = getattr(config, "sliding_window", None)
        named = getattr(config, "layer_types", None)
        if named is None:
            return cls(frozenset({SLIDING if window is not None else FULL}), window, False)
        kinds = frozenset(named)
        return cls(kinds, window if SLIDING in kinds else None, len(kinds) > 1)

    def masks(self, positions: Tensor, bound: int, dtype: torch.dtype) -> Tensor | Mapping[str, Tensor]:
        """Return what to pass as `attention_mask` for queries at `positions` `[B, T]` over `bound` keys."""
        if not self.takes_dict:
            return causal_mask(positions, bound, dtype, self.window)
        return {
            kind: causal_mask(positions, bound, dtype, self.window if kind == SLIDING else None) for kind in self.kinds
        }


def causal_mask(positions: Tensor, bound: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Return an additive mask `[B, 1, T, bound]`: 0 where a query sees a key, −inf elsewhere.

    Args:
        positions: `[B, T]` of the queries.
        bound: Number of keys, from position 0.
        dtype: Of the model.
        window: See only so many keys, the query's own among them.

    >>> causal_mask(torch.tensor([[1], [2]]), 4, torch.float32, window=2)[:, 0, 0].tolist()
    [[0.0, 0.0, -inf, -inf], [-inf, 0.0, 0.0, -inf]]
    """
    keys = torch.arange(bound, device=positions.device)
    queries = positions[:, :, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None]
