"""A cache of preallocated slots: a forward writes at the positions it is told, whatever stands behind them is garbage.

Rows begin at column 0 and are as long as their owner says; nothing here keeps a length. So to reject a draft is to
write over it later: nothing is cropped, no row waits for another, no row is padded on the left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_BUCKET = 64


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the next forward's tokens go.

    Attributes:
        rows: The rows it runs over.
        bound: How many columns its queries may see.
        start: The column of its first token where that is the same for all rows, else None.
        slots: Else `[rows · T]`, `row · capacity + column` of every token.
    """

    rows: slice
    bound: int
    start: int | None = None
    slots: Tensor | None = None


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: `[rows, capacity, heads, dim]`, made when the first states come."""

    is_sliding = False

    def __init__(self, num_rows: int, capacity: int) -> None:
        """`num_rows` and `capacity`: sizes of the buffers to be made."""
        super().__init__()
        self._shape = (num_rows, capacity)
        self.keys: Tensor
        self.values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, with zeros: what is masked must still be finite."""
        num_rows, capacity = self._shape
        self.keys, self.values = (
            states.new_zeros(num_rows, capacity, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def write(self, key_states: Tensor, value_states: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        """Store states `[B, heads, T, dim]` and return all that may be seen, `[B, heads, bound, dim]`, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._store(self.keys, key_states, place)
        self._store(self.values, value_states, place)
        keys = self.keys[place.rows, : place.bound].transpose(1, 2)
        return keys, self.values[place.rows, : place.bound].transpose(1, 2)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` columns."""
        self._shape = (self._shape[0], capacity)
        if self.is_initialized:
            self.keys, self.values = _grown(self.keys, capacity), _grown(self.values, capacity)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._shape = (len(rows), self._shape[1])
        if self.is_initialized:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))

    @staticmethod
    def _store(buffer: Tensor, states: Tensor, place: Placement) -> None:
        states = states.transpose(1, 2)
        if place.slots is None:
            start = place.start or 0
            buffer[place.rows, start : start + states.shape[1]] = states
        else:
            buffer.flatten(0, 1).index_copy_(0, place.slots.to(buffer.device), states.flatten(0, 1))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Refuse: a layer cannot know where the states go; `SlotCache.update` tells it."""
        raise NotImplementedError("a slot layer is written through SlotCache.update.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the keys of a prompt, which is all there is when transformers asks."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: rows have lengths of their own, and prompts begin at 0."""
        return 0

    def get_max_length(self) -> int:
        """Return how many columns there are."""
        return self._shape[1]


class SlotCache(Cache):
    """The slots of one model: `num_rows` rows of `capacity` columns in every layer.

    `aim` comes before each forward. Columns are added in buckets, by half of what is there, so that growing costs a
    constant per token.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int) -> None:
        """Sizes as above; memory is taken when the first states come."""
        self.capacity = _bucketed(capacity)
        super().__init__(layers=[SlotLayer(num_rows, self.capacity) for _ in range(num_layers)])
        self.place = Placement(rows=slice(0, num_rows), bound=self.capacity, start=0)

    def aim(self, place: Placement) -> None:
        """Say where the states of the next forward go."""
        self.place = place

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new states and return what its queries may see (transformers' own entry)."""
        layer: SlotLayer = self.layers[layer_idx]
        return layer.write(key_states, value_states, self.place)

    @property
    def num_bytes(self) -> int:
        """What the buffers hold."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(buffer.nbytes for layer in layers for buffer in (layer.keys, layer.values))

    def zero(self) -> None:
        """Hold zeros again."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys.zero_()
                layer.values.zero_()

    def require(self, length: int) -> None:
        """Make sure that `length` columns are there."""
        if length <= self.capacity:
            return
        self.capacity = _bucketed(max(length, self.capacity + self.capacity // 2))
        for layer in self.layers:
            layer.grow(self.capacity)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        for layer in self.layers:
            layer.keep(rows)


def _bucketed(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET


def _grown(buffer: Tensor, capacity: int) -> Tensor:
    larger = buffer.new_zeros(buffer.shape[0], capacity, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger


def flat_slots(positions: Tensor, capacity: int, first_row: int = 0) -> Tensor:
    """Return the slots `[B · T]` of tokens at `positions` `[B, T]` of the rows from `first_row` on.

    >>> flat_slots(torch.tensor([[2, 3], [0, 1]]), 10).tolist()
    [2, 3, 10, 11]
    """
    rows = torch.arange(first_row, first_row + positions.shape[0], device=positions.device)
    return (rows[:, None] * capacity + positions).flatten()
