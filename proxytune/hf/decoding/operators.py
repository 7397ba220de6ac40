"""What torch's operators say of themselves: what they write and make, and whether doing them again repeats them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_PLAIN = (Tensor, torch.nn.Parameter)
# Entries of torch that take what the operators of their name take, in half the time.
_DIRECT = {
    name: getattr(torch, name)
    for name in ("add", "cat", "cos", "div", "mean", "mul", "neg", "pow", "rsqrt", "sin", "sub")
}


class UnrecordableError(Exception):
    """A forward that replaying would not repeat: its kernels depend on values, draw, or work on special tensors."""


class Call:
    """One operator: what it was called with, and the memory that it works on.

    Attributes:
        operator: What was called.
        args: With what.
        kwargs: With what, by name.
        result: What it returned.
        outputs: The tensors in that.
        read: The memory of its inputs.
        written: The memory of those inputs that it changes.
        made: The memory of its results that is of no input; none for a view.
        sizes: The bytes of every memory that it works on.
    """

    def __init__(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Raises UnrecordableError if doing it again would not repeat it."""
        self.operator, self.args, self.kwargs, self.result = operator, args, kwargs, result
        inputs = [*tensors(args), *tensors(kwargs.values())]
        self.outputs = list(tensors((result,)))
        _require_repeatable(operator, args, kwargs, [*inputs, *self.outputs])
        places = _written_places(operator)
        written = [args[place] if place < len(args) else kwargs[name] for place, name in places]
        read, outputs = _sizes(inputs), _sizes(self.outputs)
        self.read = set(read)
        self.written = {memory(tensor) for tensor in tensors(written)} if written else set()
        self.made = set(outputs) - self.read
        self.sizes = read | outputs

    @property
    def is_empty(self) -> bool:
        """Whether it makes memory without contents."""
        return _is_empty(self.operator)


def tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    """Return all tensors among values and the lists in them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def memory(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor, while it lives."""
    return int(tensor.untyped_storage()._cdata)


def _sizes(involved: Iterable[Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in involved]
    return {int(storage._cdata): storage.nbytes() for storage in storages}


@cache
def out_variant(operator: Any) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
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
    operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], involved: Sequence[Tensor]
) -> None:
    needs_values, draws = _hazards(operator)
    if needs_values:
        raise UnrecordableError(f"{operator} depends on the values of its inputs.")
    # Attention draws only where it drops out.
    if draws and _argument(operator, args, kwargs, "dropout_p") != 0.0:
        raise UnrecordableError(f"{operator} draws at random.")
    for tensor in involved:
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
