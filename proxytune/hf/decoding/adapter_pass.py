"""A pass of an expert that is an adapter over its anti, and that anti."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from proxytune.hf.adapted_linear import Rows
from proxytune.hf.decoding.linear import onednn_linear
from proxytune.hf.decoding.passes import Pass, Prompts
from proxytune.hf.decoding.workspace import Workspaces
from proxytune.hf.pair import PairPass, why_no_pair_pass
from proxytune.hf.role import RoleModel


@dataclass(frozen=True)
class SharedPair:
    """A `PairPass`, and the lock that keeps two streams from choosing its rows at once."""

    pair: PairPass
    lock: threading.Lock


class AdapterPass(Pass):
    """An expert that is an adapter over its anti, and that anti: one forward over both, or over one of them."""

    def __init__(
        self,
        roles: Sequence[RoleModel],
        places: Sequence[int],
        prompts: Sequence[Prompts],
        shared: SharedPair,
        *,
        is_alone: bool,
        workspaces: Workspaces | None = None,
    ) -> None:
        """As a `Pass` of expert and anti, in this order; `shared` runs them.

        `is_alone` says that their difference is all that is asked for: then the head runs once, on h⁺ − h⁻.
        """
        super().__init__(roles, places, prompts, workspaces=workspaces)
        self._shared = shared
        self._gives_difference = is_alone and shared.pair.head_is_shared

    @property
    def _workspace_owner(self) -> Any:
        """The pair's own model: it holds one adapter, at the strength that this had when the pair was made."""
        return self._shared.pair.model

    def _run(self, inputs: Mapping[str, Any], which: slice, **keep: Any) -> Tensor:
        rows: Rows = "pair" if which.stop - which.start == 2 else "anti" if which.start else "expert"
        pair = self._shared.pair
        with self._shared.lock, onednn_linear(self.device):
            pair.rows(rows)
            # Prompts end at different places in expert and anti, so there is no difference of rows there.
            if rows == "pair" and self._gives_difference and not keep:
                hidden = pair.model.base_model(
                    **inputs, past_key_values=self._required_cache(), use_cache=True
                ).last_hidden_state
                difference: Tensor | None = pair.difference(hidden)
                if difference is not None:
                    return difference
            outputs = pair.model(**inputs, past_key_values=self._required_cache(), use_cache=True, **keep)
        logits: Tensor = outputs.logits
        return logits

    def _by_place(self, logits: Tensor, which: slice) -> dict[int, Tensor]:
        if which.stop - which.start == 2 and len(logits) == self._num_rows:
            # Expert − anti in the expert's place, nothing in the anti's: the rule adds the same.
            return {self.places[0]: logits, self.places[1]: logits.new_zeros(1).expand_as(logits)}
        return super()._by_place(logits, which)


def shared_pairs(roles: Sequence[RoleModel], pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], SharedPair]:
    """Return what can run each (expert, anti) in one pass, for the pairs that can; the others need two.

    An anti that several experts adapt runs with the first of them.
    """
    found: dict[tuple[int, int], SharedPair] = {}
    for expert, anti in pairs:
        one, other = roles[expert], roles[anti]
        is_adapter = one.model is other.model and one.adapter_name is not None and other.adapter_name is None
        if not is_adapter or any(anti == taken for _, taken in found):
            continue
        if why_no_pair_pass(one.adapter, one.adapter_name or "") is None:
            found[expert, anti] = SharedPair(PairPass(one.adapter, one.adapter_name or ""), threading.Lock())
    return found
