"""Role runners: one forward of one model that serves one role, or several whose rows are stacked."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from proxytune.hf.adapted_linear import Rows
from proxytune.hf.decoding.attention import LayerTypes, causal_mask, takes_lengths
from proxytune.hf.decoding.cuda_graph import CudaGraphs, StaticCache
from proxytune.hf.decoding.functional_decoder import FunctionalDecoder, RotaryTable
from proxytune.hf.decoding.kv_cache import SlotCache, SlotMapping, flat_slots
from proxytune.hf.pair import PairPass, pair_unsupported_reason
from proxytune.hf.role import RoleModel

_HEADROOM = 64  # columns that are ready for an answer when it begins
_ALIGNED = 8  # columns: what CUDA's kernels want of a mask
_MIN_GRAPH_KV_LEN = 256  # columns that a graph reads, doubled as answers grow

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Span:
    """Positions of one forward: `[B, T]`, or the slice all rows share; its mask is None where nothing is hidden."""

    positions: Tensor | slice
    mapping: SlotMapping
    mask: Tensor | None = None


class RoleRunner:
    """Roles that share a model (and its adapter), their prompts and their key-value cache.

    The rows of the first role come first, then those of the second, each role's in the batch's order. Positions of a
    row are those of its role's prompt and then of the answer that all roles share.

    Attributes:
        roles: They differ in their prompts alone.
        role_indices: Of the roles in the composite.
        is_warmup: True if the last forward also set up what later ones use.
    """

    def __init__(
        self,
        roles: Sequence[RoleModel],
        role_indices: Sequence[int],
        prompts: Sequence[Prompts],
        *,
        graphs: CudaGraphs | None = None,
        max_new_tokens: int = 0,
    ) -> None:
        """Take the roles with their prompts.

        Args:
            roles: Of one model.
            role_indices: Theirs.
            prompts: Token ids per role and row.
            graphs: Captures forwards where the model supports it.
            max_new_tokens: Most tokens that are run after the prompts, which graphs have columns for from the start.
        """
        self.roles = list(roles)
        self.role_indices = list(role_indices)
        self._prompts = [[list(row) for row in rows] for rows in prompts]
        self._lengths = [[len(row) for row in rows] for rows in prompts]
        self._num_rows = len(prompts[0])
        model = self._model
        self._layer_types = LayerTypes.of(self.roles[0].config)
        self._functional = None if self._layer_types.is_mixed else FunctionalDecoder.of(model)
        self._rotary = None if self._functional is None else RotaryTable(self._functional.rotary, _any_weight(model))
        self._cache = SlotCache(int(self.roles[0].config.num_hidden_layers), 0, 0)
        self._graphs = graphs if graphs is not None and graphs.supports(model, self.device) else None
        self._static: StaticCache | None = None
        self._max_new_tokens = max_new_tokens
        self.is_warmup = False

    @property
    def device(self) -> torch.device:
        """Device of its input."""
        return self.roles[0].device

    @property
    def name(self) -> str:
        """Its roles' names, joined."""
        return "+".join(role.name for role in self.roles)

    @property
    def all_roles(self) -> slice:
        """All of its roles, as `forward` takes them."""
        return slice(0, len(self.roles))

    def prefill(self) -> dict[int, Tensor]:
        """Run all prompts; return, per role index, the logits `[B, 1, V]` after each.

        Short rows are padded on the right: those slots are overwritten before any query sees them.
        """
        rows = [row for prompts in self._prompts for row in prompts]
        width = max(map(len, rows))
        token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)
        self._allocate(len(rows), width)
        span = _Span(slice(0, width), SlotMapping(rows=slice(0, len(rows)), kv_len=width, start=0))
        if self._layer_types.window is not None and self._layer_types.window < width:
            span = self._masked(span, torch.arange(width, device=self.device)[None], width)
        last = [len(row) - 1 for row in rows]
        return self._by_role(self._logits(token_ids, span, self.all_roles, last), self.all_roles)

    def forward(self, token_ids: Tensor, offsets: Sequence[int], which: slice | None = None) -> dict[int, Tensor]:
        """Run tokens of the answer; return, per role index, the logits `[B, T, V]` after each.

        Args:
            token_ids: `[B, T]`.
            offsets: Position in the answer of each row's first token.
            which: Of its roles, those that take part; all by default.
        """
        which = which or self.all_roles
        token_ids = token_ids.to(self.device)
        num_roles = which.stop - which.start
        if num_roles > 1:
            token_ids = token_ids.repeat(num_roles, 1)
        starts = [
            length + offset for lengths in self._lengths[which] for length, offset in zip(lengths, offsets, strict=True)
        ]
        logits = self._graph_logits(token_ids, starts, which)
        if logits is None:
            span = self._span(starts, token_ids.shape[1], which.start * self._num_rows)
            logits = self._logits(token_ids, span, which)
        return self._by_role(logits, which)

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self._lengths = [[lengths[row] for row in rows] for lengths in self._lengths]
        stacked = [index * self._num_rows + row for index in range(len(self.roles)) for row in rows]
        self._cache.select_rows(torch.tensor(stacked, device=self.device))
        self._num_rows = len(rows)

    def release(self) -> None:
        """Leave the cache to later batches; nothing can be run any more."""
        if self._graphs is not None and self._static is not None:
            self._graphs.release(self._model, self._static)
            self._static = None

    def _allocate(self, num_rows: int, width: int) -> None:
        """Make the cache for prompts of up to `width` tokens."""
        num_layers = len(self._cache.layers)
        if self._graphs is None:
            self._cache = SlotCache(num_layers, num_rows, width + _HEADROOM)
            return
        self._static = self._graphs.acquire(self._model, num_layers, num_rows, width + self._max_new_tokens)
        self._cache = self._static.cache
        # Graphs read its addresses, so the table stays with them.
        self._rotary = self._static.rotary = self._static.rotary or self._rotary

    def _graph_logits(self, token_ids: Tensor, starts: Sequence[int], which: slice) -> Tensor | None:
        """Return the logits by a CUDA graph; None where the forward is to run eagerly."""
        end = max(starts) + token_ids.shape[1]
        if self._graphs is None or self._static is None or end > self._cache.capacity:
            return None
        kv_len = min(self._cache.capacity, max(_MIN_GRAPH_KV_LEN, 1 << (end - 1).bit_length()))
        key = (which.start, which.stop, *token_ids.shape, kv_len)
        first_row = which.start * self._num_rows

        def forward(token_ids: Tensor, first: Tensor) -> Tensor:
            return self._logits(token_ids, self._ragged_span(first, token_ids.shape[1], first_row, kv_len), which)

        self.is_warmup = key not in self._static.captured
        first = torch.tensor(list(starts), device=self.device)
        return self._graphs.run(self._static, key, forward, token_ids, first)

    def _span(self, starts: Sequence[int], width: int, first_row: int) -> _Span:
        """Return positions, slots and mask of rows that begin at `starts`; rows of one length share a slice."""
        end = max(starts) + width
        self._cache.require(end)
        rows = slice(first_row, first_row + len(starts))
        if min(starts) == max(starts):
            span = _Span(slice(starts[0], end), SlotMapping(rows=rows, kv_len=end, start=starts[0]))
            window = self._layer_types.window
            if width == 1 and self._functional is not None and (window is None or end <= window):
                return span
            return self._masked(span, torch.arange(starts[0], end, device=self.device)[None], end)
        kv_len = min(-(-end // _ALIGNED) * _ALIGNED, self._cache.capacity)
        return self._ragged_span(torch.tensor(starts, device=self.device), width, first_row, kv_len)

    def _ragged_span(self, first: Tensor, width: int, first_row: int, kv_len: int) -> _Span:
        """Return the span of rows that begin at `first` `[B]`, without a look at its values."""
        positions = first[:, None] + torch.arange(width, device=self.device)
        slots = flat_slots(positions, self._cache.capacity, first_row)
        mapping = SlotMapping(rows=slice(first_row, first_row + len(first)), kv_len=kv_len, slots=slots)
        if self._functional is not None and takes_lengths(self.device, self._model.dtype):
            return _Span(positions, replace(mapping, lengths=(first + width).int()))
        return self._masked(_Span(positions, mapping), positions, kv_len)

    def _masked(self, span: _Span, positions: Tensor, kv_len: int) -> _Span:
        """Return the span with a mask for its queries at `positions`; modules build theirs per type of layer."""
        if self._functional is None:
            return _Span(positions, span.mapping)
        mask = causal_mask(positions, kv_len, self._model.dtype, self._layer_types.window)
        return _Span(span.positions, span.mapping, mask)

    @property
    def _model(self) -> Any:
        """The model that runs."""
        return self.roles[0].model

    @contextmanager
    def _running(self, which: slice) -> Iterator[None]:
        """Run with the adapter as the roles have it."""
        with self.roles[which.start].adapter_switched():
            yield

    def _logits(self, token_ids: Tensor, span: _Span, which: slice, last: Sequence[int] | None = None) -> Tensor:
        """Return logits `[rows, T, V]`, or with the index of each row's last token `[rows, 1, V]`."""
        self._cache.set_slot_mapping(span.mapping)
        with self._running(which):
            if self._functional is None or self._rotary is None:
                return self._module_logits(token_ids, span, last)
            self._rotary.require(self._cache.capacity)
            hidden = self._functional.hidden(token_ids, self._rotary.at(span.positions), self._cache, span.mask)
            if last is not None:
                return self._functional.head(_at(hidden, last))
            return self._head(hidden, which)

    def _head(self, hidden: Tensor, which: slice) -> Tensor:
        """Return the logits `[rows, T, V]` of hidden states `[rows, T, D]` of an answer."""
        if self._functional is None:
            raise RuntimeError("only a functional decoder has its head apart.")
        return self._functional.head(hidden)

    def _module_logits(self, token_ids: Tensor, span: _Span, last: Sequence[int] | None) -> Tensor:
        """Return the same by transformers' own forward."""
        arguments = self._module_arguments(token_ids, span, has_mask=last is None)
        if last is None:
            logits: Tensor = self._model(**arguments).logits
            return logits
        kept = sorted(set(last))
        logits = self._model(**arguments, logits_to_keep=torch.tensor(kept, device=self.device)).logits
        return logits if len(kept) == 1 else _at(logits, [kept.index(index) for index in last])

    def _module_arguments(self, token_ids: Tensor, span: _Span, *, has_mask: bool) -> dict[str, Any]:
        """Return what transformers' forward takes; without a mask it makes a prompt's."""
        positions = span.positions
        if isinstance(positions, slice):
            positions = torch.arange(positions.start, positions.stop, device=self.device)[None]
        # Drafts after a row's last position have no embedding and are never accepted.
        context = self.roles[0].max_context
        embedded = positions if context is None else positions.clamp(max=context - 1)
        masks = self._layer_types.masks(positions, span.mapping.kv_len, self._model.dtype) if has_mask else None
        return {
            "input_ids": token_ids,
            "position_ids": embedded.expand(token_ids.shape[0], -1),
            "attention_mask": masks,
            "past_key_values": self._cache,
            "use_cache": True,
        }

    def _by_role(self, logits: Tensor, which: slice) -> dict[int, Tensor]:
        indices = self.role_indices[which]
        return dict(zip(indices, logits.chunk(len(indices)), strict=True))


@dataclass(frozen=True)
class SharedPair:
    """A `PairPass`, and the lock that keeps two streams from choosing its rows at once."""

    pair: PairPass
    lock: threading.Lock


class LoraPairRunner(RoleRunner):
    """An expert that is an adapter over its anti, and that anti: one forward over both, or over one of them."""

    def __init__(
        self,
        roles: Sequence[RoleModel],
        role_indices: Sequence[int],
        prompts: Sequence[Prompts],
        shared: SharedPair,
        *,
        is_alone: bool,
        **graphs: Any,
    ) -> None:
        """As a `RoleRunner` of expert and anti, in this order; `shared` runs them.

        `is_alone`: only their difference enters the rule. Then the head runs once, on h⁺ − h⁻.
        """
        self._shared = shared
        self._gives_difference = is_alone and shared.pair.head_is_shared
        super().__init__(roles, role_indices, prompts, **graphs)

    @property
    def _model(self) -> Any:
        return self._shared.pair.model

    @contextmanager
    def _running(self, which: slice) -> Iterator[None]:
        rows: Rows = "pair" if which.stop - which.start == 2 else "anti" if which.start else "expert"
        with self._shared.lock:
            self._shared.pair.rows(rows)
            yield

    def _head(self, hidden: Tensor, which: slice) -> Tensor:
        if which.stop - which.start == 2 and self._gives_difference:
            difference = self._shared.pair.difference(hidden)
            if difference is not None:
                return difference
        return super()._head(hidden, which)

    def _module_logits(self, token_ids: Tensor, span: _Span, last: Sequence[int] | None) -> Tensor:
        # Prompts end at different positions in expert and anti, so there is no difference of rows there.
        if last is None and self._gives_difference and len(token_ids) == 2 * self._num_rows:
            pair = self._shared.pair
            arguments = self._module_arguments(token_ids, span, has_mask=True)
            difference = pair.difference(pair.model.base_model(**arguments).last_hidden_state)
            if difference is not None:
                return difference
        return super()._module_logits(token_ids, span, last)

    def _by_role(self, logits: Tensor, which: slice) -> dict[int, Tensor]:
        if which.stop - which.start == 2 and len(logits) == self._num_rows:
            # The rule adds expert − anti, which is this and nothing.
            return {self.role_indices[0]: logits, self.role_indices[1]: logits.new_zeros(1).expand_as(logits)}
        return super()._by_role(logits, which)


def shared_pairs(
    roles: Sequence[RoleModel], pairs: Sequence[tuple[int, int | None]]
) -> Mapping[tuple[int, int], SharedPair]:
    """Return, by role indices, the pairs whose expert and anti can run in one forward.

    An anti that several experts adapt runs with the first of them.
    """
    shared: dict[tuple[int, int], SharedPair] = {}
    for expert, anti in pairs:
        if anti is None:
            continue
        one, other = roles[expert], roles[anti]
        is_adapter = one.model is other.model and one.adapter_name is not None and other.adapter_name is None
        if not is_adapter or any(anti == taken for _, taken in shared):
            continue
        if pair_unsupported_reason(one.adapter, one.adapter_name or "") is None:
            shared[expert, anti] = SharedPair(PairPass(one.adapter, one.adapter_name or ""), threading.Lock())
    return shared


def _at(states: Tensor, indices: Sequence[int]) -> Tensor:
    """Return `[rows, 1, ...]`, of `[rows, T, ...]` the entry at each row's index."""
    rows = torch.arange(len(indices), device=states.device)
    return states[rows, torch.tensor(list(indices), device=states.device)][:, None]


def _any_weight(model: Any) -> Tensor:
    """Return a tensor of a model's dtype and device."""
    weight: Tensor = model.get_input_embeddings().weight
    return weight[:1]
