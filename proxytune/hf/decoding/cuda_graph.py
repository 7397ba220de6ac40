"""CUDA graphs of role forwards, captured once per shape over key-value caches that live across batches.

One graph is one forward of one model on its own device, so that roles may be sharded, quantised or elsewhere without
the others losing theirs. A graph reads token ids and first positions from tensors of its own; positions, slots and
masks are made inside it. Not run on a GPU yet: the tests replay forwards through the same code on a CPU.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import ProxyTuneWarning
from proxytune.hf.decoding.functional_decoder import RotaryTable, has_hooks
from proxytune.hf.decoding.kv_cache import SlotCache

Forward = Callable[[Tensor, Tensor], Tensor]

_NUM_EAGER = 1  # forwards of a shape before it is captured: libraries set up what they need
_MIN_ROWS, _CAPACITY_STEP = 1, 256
_capture_lock = threading.Lock()  # torch: one capture per process


@dataclass(frozen=True)
class CapturedForward:
    """A graph, the tensors it reads, and the one it writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, Tensor]
    output: Tensor

    def run(self, token_ids: Tensor, first: Tensor) -> Tensor:
        """Return the forward's logits in a tensor of their own: the next replay overwrites the graph's."""
        for target, value in zip(self.inputs, (token_ids, first), strict=True):
            target.copy_(value, non_blocking=True)
        self.replay()
        return self.output.clone()


@dataclass
class StaticCache:
    """A key-value cache at fixed addresses, and what was captured over it."""

    cache: SlotCache
    signature: Hashable
    rotary: RotaryTable | None = None
    captured: dict[Hashable, CapturedForward] = field(default_factory=dict)
    num_eager: dict[Hashable, int] = field(default_factory=dict)
    pool: Any = None  # memory of its graphs, which never run at once


class CudaGraphs:
    """Graphs of a generator's roles, with the caches they are bound to.

    Attributes:
        is_off: True if a capture has failed: nothing is captured any more.
    """

    def __init__(self) -> None:
        self.is_off = False
        self._free: dict[tuple[int, int], list[StaticCache]] = {}
        self._lock = threading.Lock()

    def supports(self, model: Any, device: torch.device) -> bool:
        """Return whether forwards of a model can be captured: on CUDA, nothing quantised, no Python in its modules."""
        is_quantised = bool(getattr(model, "is_quantized", False))
        return (
            not self.is_off and device.type == "cuda" and not is_quantised and not any(map(has_hooks, model.modules()))
        )

    def acquire(self, model: Any, num_layers: int, num_rows: int, capacity: int) -> StaticCache:
        """Return a cache of at least `num_rows` rows and `capacity` columns: one of an earlier batch where it fits.

        Graphs read weights at their addresses: a model whose weights have moved since gets a new one.
        """
        signature = tuple(weight.data_ptr() for weight in model.parameters())
        num_rows = 1 << (max(num_rows, _MIN_ROWS) - 1).bit_length()
        with self._lock:
            free = self._free.get((id(model), num_rows), [])
            while free:
                entry = free.pop()
                if entry.signature == signature and entry.cache.capacity >= capacity:
                    return entry
        capacity = -(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP
        return StaticCache(SlotCache(num_layers, num_rows, capacity), signature)

    def release(self, model: Any, entry: StaticCache) -> None:
        """Leave a cache to later batches; the last one of each size is kept."""
        num_rows = entry.cache.num_rows
        with self._lock:
            self._free[id(model), num_rows] = [entry]

    def run(
        self, entry: StaticCache, key: Hashable, forward: Forward, token_ids: Tensor, first: Tensor
    ) -> Tensor | None:
        """Return the logits by the graph of this shape; None where the forward is to run eagerly this time.

        Args:
            entry: Of `acquire`.
            key: Equal for forwards that differ in their inputs' contents alone.
            forward: Reads its arguments, weights and the cache, and nothing else that changes.
            token_ids: `[B, T]`.
            first: `[B]`, positions of the first tokens.
        """
        captured = entry.captured.get(key)
        if captured is not None:
            return captured.run(token_ids, first)
        entry.num_eager[key] = entry.num_eager.get(key, 0) + 1
        if self.is_off or entry.num_eager[key] <= _NUM_EAGER:
            return None
        inputs = token_ids.clone(), first.clone()
        expected = forward(*inputs)
        try:
            captured = capture(forward, inputs, entry)
            result = captured.run(token_ids, first)
            is_right = torch.allclose(result, expected, rtol=1e-3, atol=1e-3)
        except RuntimeError as error:  # out of memory included: eagerly it may fit
            self._turn_off(f"could not be captured: {error}")
            return expected
        if not is_right:
            self._turn_off("gave other logits than the forward it was captured from")
            return expected
        entry.captured[key] = captured
        return result

    def _turn_off(self, reason: str) -> None:
        self.is_off = True
        warnings.warn(f"decoding goes on without CUDA graphs: one {reason}.", ProxyTuneWarning, stacklevel=2)


def capture(forward: Forward, inputs: tuple[Tensor, Tensor], entry: StaticCache) -> CapturedForward:
    """Capture a forward on a stream of its own, in the memory pool of its cache.

    Raises:
        RuntimeError: It cannot be captured; stream, allocator and pool are as they were.
    """
    device = inputs[0].device
    with _capture_lock, torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if entry.pool is None:
            entry.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            forward(*inputs)
            stream.synchronize()
            with _capturing(graph, entry.pool, device):
                output = forward(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
    return CapturedForward(graph.replay, inputs, output)


@contextmanager
def _capturing(graph: Any, pool: Any, device: torch.device) -> Iterator[None]:
    """Capture inside; an error leaves the allocator as it was, which torch's own context does not."""
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
        graph.capture_end()
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()
        # A capture that was invalidated raises before its end reaches the allocator.
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
        raise
