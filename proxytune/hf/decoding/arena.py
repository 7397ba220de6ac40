"""Memory for what recorded forwards write on their way: one piece for all of a pass, as one runs at a time.

A forward writes some 10 MB per token in a model of 7B parameters, and of that a few hundred kB at once: what one layer
has written, the next may write over. So a recording costs no memory of its own, and what it writes stays in the
processor's caches.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from proxytune.hf.decoding.operators import Call, memory

_ALIGNED = 64  # bytes: a cache line


class Arena:
    """One piece of memory, in which the intermediate results of recordings lie, those of one over those of another."""

    def __init__(self) -> None:
        self._storage = UntypedStorage(0)  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self._storage.nbytes()

    def mover(self, calls: Sequence[Call], result: Tensor, movable: set[int]) -> "Mover":
        """Return what puts the calls' intermediate results, and their last one, in here.

        Args:
            calls: In their order. What one makes nobody else may want, but `result`.
            result: Of the last; it holds until other calls that were moved into here run.
            movable: The memory that may move.
        """
        offsets, size = _layout(_uses(calls, result, movable))
        if size > self.num_bytes:
            # Earlier recordings keep the smaller one.
            self._storage = UntypedStorage(size)  # type: ignore[no-untyped-call]
        return Mover(self._storage, offsets)


class Mover:
    """Finds the tensor in an arena that stands for one outside."""

    def __init__(self, storage: UntypedStorage, offsets: Mapping[int, int]) -> None:
        """`offsets`: the byte at which each memory that moves begins in `storage`."""
        self._storage = storage
        self._offsets = offsets
        self._moved: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        """Return a value with its tensors, also those in lists, as they are in the arena."""
        if isinstance(value, Tensor):
            found = self._moved.get(id(value))
            if found is None:
                found = self._moved[id(value)] = self._tensor(value)
            return found
        return type(value)(map(self, value)) if isinstance(value, list | tuple) else value

    def _tensor(self, tensor: Tensor) -> Tensor:
        start = self._offsets.get(memory(tensor))
        if start is None:
            return tensor
        place = start // tensor.element_size() + tensor.storage_offset()
        return torch.empty(0, dtype=tensor.dtype).set_(self._storage, place, tensor.shape, tensor.stride())


@dataclass(frozen=True)
class _Use:
    """When a memory is needed: from one call to another, by their places. And its bytes."""

    first: int
    last: int
    size: int


def _uses(calls: Sequence[Call], result: Tensor, movable: set[int]) -> dict[int, _Use]:
    """Return what moves, in the order in which it is needed first."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for place, call in enumerate(calls):
        for name, size in call.sizes.items():
            if name in movable:
                first.setdefault(name, place)
                last[name] = place
                sizes[name] = size
    last[memory(result)] = len(calls)
    return {name: _Use(place, last[name], sizes[name]) for name, place in first.items()}


def _layout(uses: Mapping[int, _Use]) -> tuple[dict[int, int], int]:
    """Return the byte at which each memory begins, and the bytes of all; what lives at the same time lies apart.

    Memory that is free again goes to the next of its size: layers repeat, so little is gained by a finer search.
    """
    offsets: dict[int, int] = {}
    free: dict[int, list[int]] = defaultdict(list)
    ends: list[tuple[int, int, int]] = []  # a heap of what is taken: its last call, size and offset
    total = 0
    for name, use in uses.items():
        while ends and ends[0][0] < use.first:
            _, size, offset = heappop(ends)
            free[size].append(offset)
        size = -(-use.size // _ALIGNED) * _ALIGNED
        if free[size]:
            offsets[name] = free[size].pop()
        else:
            offsets[name], total = total, total + size
        heappush(ends, (use.last, size, offsets[name]))
    return offsets, total
