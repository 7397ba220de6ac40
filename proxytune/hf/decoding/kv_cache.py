"""Key-value cache of preallocated slots: a forward writes at the positions it is given; later slots are garbage.

Rows begin at column 0, and their owner knows their lengths. Rejecting a draft is to write over it later: nothing is
cropped, no row waits for another, no row is padded on the left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_BUCKET = 64


@dataclass(frozen=True, kw_only=True)
class SlotMapping:
    """Destination of the next forward's keys and values.

    Attributes:
        rows: The rows it runs over.
        kv_len: Number of columns its queries may see.
        start: Column of its first token where all rows share it, else None.
        slots: Else `[rows · T]`, `row · capacity + column` of every token.
        lengths: `[rows]` int32, columns of each row with this forward's tokens, for kernels that take no mask.
    """

    rows: slice
    kv_len: int
    start: int | None = None
    slots: Tensor | None = None
    lengths: Tensor | None = None


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: `[rows, capacity, heads, dim]`, allocated when the first states come."""

    is_sliding = False

    def __init__(self, num_rows: int, capacity: int) -> None:
        """Take the sizes of the buffers."""
        super().__init__()
        self._shape = (num_rows, capacity)
        self.keys: Tensor
        self.values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for states `[B, T, heads, dim]`, zeroed: masked slots must still be finite."""
        self.keys, self.values = (
            states.new_zeros(*self._shape, states.shape[2], states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def write(self, key_states: Tensor, value_states: Tensor, mapping: SlotMapping) -> tuple[Tensor, Tensor]:
        """Store states `[B, T, heads, dim]` and return the visible ones, `[B, kv_len, heads, dim]`, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, kv_len = mapping.rows, mapping.kv_len
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if mapping.slots is None:
                start = mapping.start or 0
                buffer[rows, start : start + states.shape[1]] = states
            else:
                buffer.flatten(0, 1).index_copy_(0, mapping.slots, states.flatten(0, 1))
        return self.keys[rows, :kv_len], self.values[rows, :kv_len]

    def grow(self, capacity: int) -> None:
        """Enlarge the buffers to `capacity` columns."""
        self._shape = (self._shape[0], capacity)
        if self.is_initialized:
            self.keys, self.values = _grown(self.keys, capacity), _grown(self.values, capacity)

    def select_rows(self, rows: Tensor) -> None:
        """Move these rows to the front, in this order; the buffers stay where they are."""
        if self.is_initialized:
            for buffer in (self.keys, self.values):
                buffer[: len(rows)] = buffer.index_select(0, rows.to(buffer.device))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Refuse: a layer has no slot mapping; `SlotCache.update` passes it."""
        raise NotImplementedError("a slot layer is written through SlotCache.update.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the keys of a prompt, the only forward for which transformers asks."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: rows have lengths of their own, and prompts begin at 0."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of columns."""
        return self._shape[1]


class SlotCache(Cache):
    """Slots of one model: `num_rows` rows of `capacity` columns in every layer.

    `set_slot_mapping` comes before each forward. Columns are added in buckets, by half of the capacity, so that
    growing costs a constant per token.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int) -> None:
        """Take the sizes; memory is allocated when the first states come."""
        self.num_rows = num_rows
        self.capacity = _bucketed(capacity)
        super().__init__(layers=[SlotLayer(num_rows, self.capacity) for _ in range(num_layers)])
        self.mapping = SlotMapping(rows=slice(0, num_rows), kv_len=self.capacity, start=0)
        self._mapping_of_device: dict[torch.device, SlotMapping] = {}

    def set_slot_mapping(self, mapping: SlotMapping) -> None:
        """Set the destination of the next forward's states."""
        self.mapping = mapping
        self._mapping_of_device.clear()

    def write(self, layer_index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's states `[B, T, heads, dim]`; return the visible ones, `[B, kv_len, heads, dim]`."""
        layer: SlotLayer = self.layers[layer_index]
        return layer.write(keys, values, self._mapping_on(keys.device))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store states `[B, heads, T, dim]` and return the visible ones likewise (transformers' own entry)."""
        keys, values = self.write(layer_idx, key_states.transpose(1, 2), value_states.transpose(1, 2))
        return keys.transpose(1, 2), values.transpose(1, 2)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(buffer.nbytes for layer in layers for buffer in (layer.keys, layer.values))

    def require(self, length: int) -> None:
        """Ensure at least `length` columns."""
        if length <= self.capacity:
            return
        self.capacity = _bucketed(max(length, self.capacity + self.capacity // 2))
        for layer in self.layers:
            layer.grow(self.capacity)

    def select_rows(self, rows: Tensor) -> None:
        """Move these rows to the front, in this order."""
        for layer in self.layers:
            layer.select_rows(rows)

    def _mapping_on(self, device: torch.device) -> SlotMapping:
        """Return the mapping with its slots on a layer's device, copied once per forward and device."""
        slots = self.mapping.slots
        if slots is None or slots.device == device:
            return self.mapping
        if device not in self._mapping_of_device:
            moved = SlotMapping(rows=self.mapping.rows, kv_len=self.mapping.kv_len, slots=slots.to(device))
            self._mapping_of_device[device] = moved
        return self._mapping_of_device[device]


def flat_slots(positions: Tensor, capacity: int, first_row: int = 0) -> Tensor:
    """Return the slots `[B · T]` of tokens at `positions` `[B, T]` of the rows from `first_row` on.

    >>> flat_slots(torch.tensor([[2, 3], [0, 1]]), 10).tolist()
    [2, 3, 10, 11]
    """
    rows = torch.arange(first_row, first_row + positions.shape[0], device=positions.device)
    return (rows[:, None] * capacity + positions).flatten()


def _bucketed(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET


def _grown(buffer: Tensor, capacity: int) -> Tensor:
    larger = buffer.new_zeros(buffer.shape[0], capacity, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger
