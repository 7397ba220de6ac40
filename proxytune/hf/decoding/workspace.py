"""What a pass works on, and what the next batch of its size finds again: a cache, and the forwards recorded over it."""

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from proxytune.hf.decoding.replays import Replays
from proxytune.hf.decoding.slots import SlotCache

# Bytes of a model's caches that are kept: so many, or this share of its weights'.
_MOST_BYTES, _MOST_OF_WEIGHTS = 64 * 2**20, 1 / 8


@dataclass(frozen=True)
class Workspace:
    """A cache, and the recordings over it; None where nothing is recorded."""

    cache: SlotCache
    replays: Replays | None = None

    def require(self, length: int) -> None:
        """Make sure that the cache has `length` columns."""
        before = self.cache.capacity
        self.cache.require(length)
        if self.cache.capacity != before and self.replays is not None:
            self.replays.clear()

    def keep(self, rows: Any) -> None:
        """Keep these rows of the cache, in this order."""
        self.cache.keep(rows)
        if self.replays is not None:
            self.replays.clear()


@dataclass(frozen=True)
class Workspaces:
    """Those of batches that are over, one per model and number of rows, for batches that come.

    Recordings read the weights where they lie. A model whose weights have moved since gets a new workspace.
    """

    _free: dict[tuple[int, int], tuple[Hashable, Workspace]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, model: Any, num_rows: int, capacity: int) -> Workspace:
        """Return a workspace for `num_rows` rows of `capacity` columns, its cache holding zeros or nothing yet."""
        with self._lock:
            state, found = self._free.pop((id(model), num_rows), (None, None))
        if found is None or found.cache.capacity < capacity or state != _state(model):
            layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
            return Workspace(SlotCache(layers, num_rows, capacity), Replays())
        # What is masked must still be finite.
        found.cache.zero()
        return found

    def give(self, model: Any, num_rows: int, workspace: Workspace) -> None:
        """Take a workspace back whose batch is over; what was used longest ago goes where there is no room for all."""
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        room = max(_MOST_BYTES, weights * _MOST_OF_WEIGHTS) - workspace.cache.num_bytes
        if room < 0:
            return
        with self._lock:
            self._free.pop((id(model), num_rows), None)
            for name in reversed([name for name in self._free if name[0] == id(model)]):
                room -= self._free[name][1].cache.num_bytes
                if room < 0:
                    del self._free[name]
            self._free[id(model), num_rows] = _state(model), workspace


def _state(model: Any) -> Hashable:
    """Return what tells whether recordings of a model hold: its weights' places, and what torch does with operators."""
    weights = tuple(tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers()))
    casting = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return model.training, weights, casting, torch.is_inference_mode_enabled()
