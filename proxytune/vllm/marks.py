"""Marks of broken logits: ids behind the base's vocabulary, one per role, by which the engine tells whose they are.

An error in an engine's process ends it with every request, and nothing else of a request leaves it but tokens. So the
composite's logits have a column for each role, which is the only one that is left where the role's logits hold a NaN or
+inf and count. Whoever reads the tokens makes an error of a mark; no role ever reads one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import NonFiniteLogitsError
from proxytune.vllm.plan import Plan

_KEY = "proxytune_first_mark"  # of the composite's config
_MARKED = 1.0  # above the logit that `SeededSampling` gives a drawn token


@dataclass(frozen=True)
class Marks:
    """Marks of an engine: `first_id` on, one for each of its roles.

    Attributes:
        first_id: Width of the base's vocabulary.
        names: Of the roles.
    """

    first_id: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, hf_config: Any) -> "Marks | None":
        """Return the marks of a composite's config; None where it was made without."""
        first_id = getattr(hf_config, _KEY, None)
        return None if first_id is None else cls(first_id, tuple(role.name for role in Plan.of(hf_config).roles))

    def overrides(self) -> dict[str, Any]:
        """Return vLLM's `hf_overrides` that make room for them."""
        return {_KEY: self.first_id, "vocab_size": self.first_id + len(self.names)}

    def require_none(self, token_ids: Sequence[int], row: int, role_lengths: Sequence[int]) -> None:
        """Raise NonFiniteLogitsError for a mark among tokens; `role_lengths` are those before them, by role or for all.

        The logits of a position choose the token after it.
        """
        for index, token_id in enumerate(token_ids):
            if token_id >= self.first_id:
                role_index = token_id - self.first_id
                length = role_lengths[min(role_index, len(role_lengths) - 1)]
                raise NonFiniteLogitsError(self.names[role_index], row, length + index - 1)


def broken_roles(logits: Sequence[Tensor], pairs: Sequence[tuple[int, int | None]], strengths: Tensor) -> Tensor:
    """Return `[N, roles]`: roles whose logits `[N, V]` hold a NaN or +inf and count, as a pair of strength 0 does not.

    One reduction per role, since a maximum is NaN where any value is; the result stays on the device.

    >>> import torch
    >>> sound, broken = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [0.0, torch.nan, 0.0]])
    >>> broken_roles([sound, broken, sound], [(1, 2)], torch.tensor([[1.0], [1.0]])).tolist()
    [[False, False, False], [False, True, False]]
    >>> bool(broken_roles([sound, broken, sound], [(1, 2)], torch.tensor([[1.0], [0.0]])).any())
    False
    """
    peaks = torch.stack([table.amax(-1).float() for table in logits], dim=-1)
    broken = peaks.isnan() | peaks.isposinf()
    for role_index in range(1, len(logits)):
        columns = [number for number, pair in enumerate(pairs) if role_index in pair]
        broken[:, role_index] &= (strengths[:, columns] != 0).any(-1)
    return broken


def with_marks(logits: Tensor, broken: Tensor) -> Tensor:
    """Return logits `[N, V + roles]` of logits `[N, V]`, where only the marks of the broken roles are left.

    >>> import torch
    >>> with_marks(torch.zeros(2, 2), torch.tensor([[False], [True]])).tolist()
    [[0.0, 0.0, -inf], [-inf, -inf, 1.0]]
    """
    sound = logits.masked_fill(broken.any(-1, keepdim=True), -torch.inf)
    marks = torch.zeros_like(broken, dtype=logits.dtype).masked_fill(~broken, -torch.inf)
    return torch.cat([sound, marks + _MARKED], dim=-1)
