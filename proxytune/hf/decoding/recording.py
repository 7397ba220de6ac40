"""A forward on the CPU as the list of its kernels: recorded once, replayed without the model's Python in between.

A small model's token costs more in Python, views and allocations than in kernels: 14 ms at 8 layers of width 512 on two
cores of an AMD EPYC, 9 when replayed, of which linear layers take 6. As in a CUDA graph every kernel works on fixed
addresses. So views hold and need not be made again, nothing is allocated, and constants are there already. The kernels
are the same, so the results are, bit for bit. Nothing is compiled: recording takes between one and two forwards more.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proxytune.hf.decoding.arena import Arena, Mover
from proxytune.hf.decoding.operators import Call, memory, out_variant

_Kernel = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]


class Recording:
    """What a function did to some tensors, to be done again to their later contents.

    Attributes:
        num_kernels: How many operators a replay runs.
        num_operators: How many ran when it was recorded.
    """

    def __init__(self, kernels: Sequence[_Kernel], result: Tensor, num_operators: int) -> None:
        """`result` is what the kernels, run in this order, fill last."""
        self._kernels = kernels
        self._result = result
        self.num_kernels = len(kernels)
        self.num_operators = num_operators

    def replay(self) -> Tensor:
        """Do it again and return the result, in a tensor of its own."""
        for kernel, args, kwargs in self._kernels:
            kernel(*args, **kwargs)
        return self._result.clone()


def record(run: Callable[[], Tensor], inputs: Sequence[Tensor], arena: Arena) -> tuple[Recording, Tensor]:
    """Run a function once; return what replays it, and its result.

    Args:
        run: Must do the same whatever the inputs hold, and read nothing else that changes but what itself changes in
            place. Of what it makes nobody may keep anything but its result.
        inputs: What will hold other values at the next replay.
        arena: Where intermediate results go. Recordings share it that never run at the same time.

    Raises:
        UnrecordableError: A replay would not repeat it. What it has changed in place is changed.
    """
    with _uncollected():
        with _Recorder() as recorder:
            result = run()
        calls = [Call(*call) for call in recorder.calls]
        needed = _needed(_varying(calls, inputs), result)
        movable = {name for call in calls if call.is_empty for name in call.made}.union(*(call.made for call in needed))
        move = arena.mover(needed, result, movable)
        return Recording([_kernel(call, move) for call in needed], move(result), len(calls)), result


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that runs inside it, in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and note it; what it is is looked at later, as the forward waits."""
        result = func(*args, **kwargs) if kwargs else func(*args)
        self.calls.append((func, args, kwargs or {}, result))
        return result


def _varying(calls: Sequence[Call], inputs: Sequence[Tensor]) -> list[Call]:
    """Return the calls whose results may differ from replay to replay; views are left out, they hold.

    What comes from outside, weights too, may have changed. Only what is made from nothing, like a range, is a constant.
    """
    changed = set(map(memory, inputs)).union(*(call.written for call in calls))
    constant: set[int] = set()
    found = []
    for call in calls:
        if call.written:
            found.append(call)
        elif call.made and not call.is_empty:
            # What starts as a constant and is changed later must be that constant again.
            if call.read <= constant and call.made.isdisjoint(changed):
                constant |= call.made
            else:
                found.append(call)
    return found


def _needed(calls: Sequence[Call], result: Tensor) -> list[Call]:
    """Return the calls that the result, or anything from outside that is changed in place, depends on."""
    own = {name for call in calls for name in call.made}
    needed = {memory(result)}
    found: list[Call] = []
    for call in reversed(calls):
        if call.made & needed or call.written & needed or call.written - own:
            needed |= call.read
            found.append(call)
    return found[::-1]


def _kernel(call: Call, move: Mover) -> _Kernel:
    """Return a function that does a call again, into the tensors that it made, and its arguments; in the arena all."""
    operator, args = call.operator, move(call.args)
    kwargs = {name: move(value) for name, value in call.kwargs.items()}
    if call.written:
        return operator, args, kwargs
    result = move(call.result)
    if operator is torch.ops.aten._to_copy.default:
        return result.copy_, (args[0],), {}
    variant = out_variant(operator)
    if variant is not None:
        into, names = variant
        return into, args, {**kwargs, **dict(zip(names, move(call.outputs), strict=True))}
    return _copying(operator, result) if isinstance(result, Tensor) else _copying_all(operator, result), args, kwargs


def _copying(operator: Any, target: Tensor) -> Callable[..., None]:
    copy = target.copy_

    def run(*args: Any, **kwargs: Any) -> None:
        copy(operator(*args, **kwargs))

    return run


def _copying_all(operator: Any, targets: Sequence[Any]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        for target, value in zip(targets, operator(*args, **kwargs), strict=True):
            if isinstance(target, Tensor):
                target.copy_(value)

    return run


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's search for cycles out: among all that is noted, and forgotten, it would find none, in 0.4 s."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
