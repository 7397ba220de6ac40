"""A cycle as one CUDA graph: its kernels are recorded once and replayed without Python in between."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from proxytune.errors import ProxyTuneWarning
from proxytune.hf.decoding.cycle import Cycle

_WARM = 2  # cycles that run before one is recorded, so that libraries have set up what they need


class Step:
    """Cycles of one width over pinned slots: recorded and replayed on CUDA, run as they are elsewhere."""

    def __init__(self, cycle: Cycle, width: int, device: torch.device) -> None:
        """`cycle`: over an ensemble whose slots are pinned; `device`: of all its roles."""
        self._run: Callable[[], Tensor] = lambda: cycle.run(width, ())[0]
        self._device = device
        self._num_runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outcome: Tensor | None = None
        self._is_recorded = device.type == "cuda"

    def run(self) -> Tensor:
        """Run one cycle and return its outcome, `RowState.take`'s, in a tensor of its own."""
        self._num_runs += 1
        if not self._is_recorded:
            return self._run()
        if self._num_runs <= _WARM:
            return self._warm()
        if self._graph is None and not self._record():
            return self._run()
        if self._graph is None or self._outcome is None:
            raise RuntimeError("a graph that was recorded is missing.")
        self._graph.replay()
        return self._outcome.clone()

    def _warm(self) -> Tensor:
        """Run on a stream beside the current one, as recording wants it."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            outcome = self._run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return outcome

    def _record(self) -> bool:
        """Record a cycle, which does not run it; where that fails, cycles run one by one from now on."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outcome = self._run()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._is_recorded = False
            warnings.warn(
                f"decoding goes on without a CUDA graph, which could not be recorded: {error}",
                ProxyTuneWarning,
                stacklevel=2,
            )
            return False
        self._graph = graph
        return True
