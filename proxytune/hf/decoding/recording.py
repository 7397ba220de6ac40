"""A forward on the CPU as the list of its kernels: recorded once, replayed without the model's Python in between.

A small model's token costs more in Python, views and allocations than in kernels: 14 ms at 8 layers of width 512 on two
cores of an AMD EPYC, 9 when replayed, of which linear layers take 6. As in a CUDA graph every kernel works on fixed
addresses: it writes where it wrote when it was recorded. So views hold and need not be made again, nothing is
allocated, and constants are there already. The kernels are the same, so the results are, bit for bit. Nothing is
compiled: recording takes between one and two forwards more.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_PLAIN = (Tensor, torch.nn.Parameter)
# Entries of torch that take what the operators of their name take, in half the time.
_DIRECT = {
    name: getattr(torch, name)
    for name in ("add", "cat", "cos", "div", "mean", "mul", "neg", "pow", "rsqrt", "sin", "sub")
}


class UnrecordableError(Exception):
    """A forward that replaying would not repeat: its kernels depend on values, draw, or work on special tensors."""


@dataclass
class _Call:
    """One operator: what it was called with, and the memory that it works on."""

    operator: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any

    def __post_init__(self) -> None:
        inputs = [*_tensors(self.args), *_tensors(self.kwargs.values())]
        self.outputs = list(_tensors((self.result,)))
        _require_repeatable(self.operator, self.args, self.kwargs, [*inputs, *self.outputs])
        places = _written_places(self.operator)
        written = [self.args[place] if place < len(self.args) else self.kwargs[name] for place, name in places]
        self.read = set(map(_storage, inputs))
        self.written = set(map(_storage, _tensors(written)))
        # None for a view.
        self.made = set(map(_storage, self.outputs)) - self.read


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


class Recording:
    """What a function did to some tensors, to be done again to their later contents.

    Attributes:
        num_kernels: How many operators a replay runs.
        num_operators: How many ran when it was recorded.
    """

    def __init__(self, run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        """Run a function once and record it.

        Args:
            run: Must do the same whatever the inputs hold, and read nothing else that changes but what itself changes
                in place.
            inputs: What will hold other values at the next replay.

        Raises:
            UnrecordableError: A replay would not repeat it. What it has changed in place is changed.
        """
        with _Recorder() as recorder:
            self._result = run()
        self.num_operators = len(recorder.calls)
        calls = _needed(_varying([_Call(*call) for call in recorder.calls], inputs), self._result)
        self._kernels = [_kernel(call) for call in calls]
        self.num_kernels = len(self._kernels)

    def replay(self) -> Tensor:
        """Do it again and return the result, in a tensor of its own."""
        for kernel, args, kwargs in self._kernels:
            kernel(*args, **kwargs)
        return self.result()

    def result(self) -> Tensor:
        """Return the latest result, in a tensor of its own."""
        return self._result.clone()


def _varying(calls: Sequence[_Call], inputs: Sequence[Tensor]) -> list[_Call]:
    """Return the calls whose results may differ from replay to replay; views are left out, they hold.

    What comes from outside, weights too, may have changed. Only what is made from nothing, like a range, is a constant.
    """
    changed = set(map(_storage, inputs)).union(*(call.written for call in calls))
    constant: set[int] = set()
    found = []
    for call in calls:
        if call.written:
            found.append(call)
        elif call.made and not _is_empty(call.operator):
            # What starts as a constant and is changed later must be that constant again.
            if call.read <= constant and call.made.isdisjoint(changed):
                constant |= call.made
            else:
                found.append(call)
    return found


def _needed(calls: Sequence[_Call], result: Tensor) -> list[_Call]:
    """Return the calls that the result, or anything from outside that is changed in place, depends on."""
    own = {storage for call in calls for storage in call.made}
    needed = {_storage(result)}
    found: list[_Call] = []
    for call in reversed(calls):
        if call.made & needed or call.written & needed or call.written - own:
            needed |= call.read
            found.append(call)
    return found[::-1]


def _kernel(call: _Call) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """Return a function that does a call again, into the tensors that it made, and its arguments."""
    operator, args, kwargs = call.operator, call.args, call.kwargs
    if call.written:
        return operator, args, kwargs
    if operator is torch.ops.aten._to_copy.default:
        return call.result.copy_, (args[0],), {}
    variant = _out_variant(operator)
    if variant is not None:
        into, names = variant
        return into, args, {**kwargs, **dict(zip(names, call.outputs, strict=True))}
    if isinstance(call.result, Tensor):
        return _copying(operator, call.result), args, kwargs
    return _copying_all(operator, call.result), args, kwargs


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


@cache
def _out_variant(operator: Any) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
    """Return what writes an operator's results into tensors that are there, and the names of those; None if nothing."""
    wanted = [(argument.name, str(argument.type)) for argument in operator._schema.arguments]
    packet = operator.overloadpacket
    for overload in packet.overloads():
        variant = getattr(packet, overload)
        arguments = variant._schema.arguments
        names = tuple(argument.name for argument in arguments if argument.is_out)
        if names and [(one.name, str(one.type)) for one in arguments if not one.is_out] == wanted:
            name = variant._schema.name.removeprefix("aten::")
            return (_DIRECT[name] if names == ("out",) and name in _DIRECT else variant), names
    return None


@cache
def _written_places(operator: Any) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operator changes."""
    arguments = enumerate(operator._schema.arguments)
    return tuple(
        (place, one.name) for place, one in arguments if one.alias_info is not None and one.alias_info.is_write
    )


def _require_repeatable(
    operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> None:
    needs_values, draws = _hazards(operator)
    if needs_values:
        raise UnrecordableError(f"{operator} depends on the values of its inputs.")
    # Attention draws only where it drops out.
    if draws and _argument(operator, args, kwargs, "dropout_p") != 0.0:
        raise UnrecordableError(f"{operator} draws at random.")
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not tensor.is_cpu:
            raise UnrecordableError(f"{operator} works on a {type(tensor).__name__} on {tensor.device}.")


@cache
def _hazards(operator: Any) -> tuple[bool, bool]:
    """Return whether what an operator does depends on values, and whether it draws at random."""
    tags = set(operator.tags)
    return bool(tags & _UNREPEATABLE), torch.Tag.nondeterministic_seeded in tags


def _argument(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: str) -> Any:
    """Return the argument of a name as a call gave it, its default where it did not; None where there is none."""
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name == wanted:
            return args[place] if place < len(args) else kwargs.get(wanted, argument.default_value)
    return None


@cache
def _is_empty(operator: Any) -> bool:
    """Return whether an operator makes memory without contents."""
    return "empty" in operator._schema.name


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor, while it lives."""
    return int(tensor.untyped_storage()._cdata)
