"""Refusal of logits that are NaN or infinite, which would otherwise steer nothing or end a row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from proxytune.completion import Request
from proxytune.errors import NonFiniteLogitsError


def is_broken(logits: Tensor) -> Tensor:
    """Return, for logits `[..., V]`, the bool `[...]` of distributions that hold a NaN or +inf, or only −inf.

    One reduction, since a maximum is NaN where any value is; the result stays on the device.

    >>> import torch
    >>> is_broken(torch.tensor([[1.0, -torch.inf], [1.0, torch.nan]])).tolist()
    [False, True]
    """
    return ~logits.amax(-1).isfinite()


def require_finite(
    logits: Sequence[Tensor | None],
    names: Sequence[str],
    inputs: Sequence[dict[str, Any] | None],
    *,
    logits_to_keep: int | Tensor = 0,
    unused: Tensor | None = None,
) -> None:
    """Raise for the first role whose logits `[B, T', V]` are broken at a position that counts.

    Args:
        logits: Of every role, None of one that took no part.
        names: Of the roles.
        inputs: Forward arguments of each role: padding in its `attention_mask` does not count.
        logits_to_keep: As in the forward that made them.
        unused: `[roles, B]`, rows in which a role's logits change nothing (α = 0); None where all count.

    Raises:
        NonFiniteLogitsError: It names role, row and position.
    """
    broken = [
        None if table is None else _counted(table, role_inputs or {}, logits_to_keep)
        for table, role_inputs in zip(logits, inputs, strict=True)
    ]
    if unused is not None:
        broken = [
            None if table is None else table & ~rows.to(table.device)[:, None]
            for table, rows in zip(broken, unused, strict=True)
        ]
    flags = [table.any().to(broken[0].device) for table in broken if table is not None]  # type: ignore[union-attr]
    # One synchronisation for all roles.
    if not bool(torch.stack(flags).any()):
        return
    for name, table, role_inputs in zip(names, broken, inputs, strict=True):
        if table is not None and bool(table.any()):
            row, index = table.nonzero()[0].tolist()
            raise NonFiniteLogitsError(
                name, row, _position(role_inputs or {}, row, index, table.shape[1], logits_to_keep)
            )


@contextmanager
def rows_named(requests: Sequence[Request], rows_per_request: int = 1) -> Iterator[None]:
    """Name rows of a batch by the numbers of their prompts in the call."""
    try:
        yield
    except NonFiniteLogitsError as error:
        request = requests[error.row // rows_per_request]
        raise NonFiniteLogitsError(error.role, request.index, error.position) from error


def _kept(columns: Tensor, inputs: dict[str, Any], num_kept: int, logits_to_keep: int | Tensor) -> Tensor:
    """Return of `columns` `[B, past + T]` those of the positions whose logits were kept."""
    if isinstance(logits_to_keep, Tensor):
        return columns[:, -inputs["input_ids"].shape[1] :][:, logits_to_keep.to(columns.device)]
    return columns[:, -num_kept:]


def _counted(logits: Tensor, inputs: dict[str, Any], logits_to_keep: int | Tensor) -> Tensor:
    """Return the broken distributions `[B, T']` that are not those of padding."""
    broken = is_broken(logits)
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return broken
    return broken & _kept(mask, inputs, broken.shape[1], logits_to_keep).bool().to(broken.device)


def _position(inputs: dict[str, Any], row: int, index: int, num_kept: int, logits_to_keep: int | Tensor) -> int:
    """Return the position in its sequence of the `index`-th of the kept positions of a row."""
    positions = inputs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        mask = inputs.get("attention_mask")
        positions = (
            mask.cumsum(-1) - 1
            if isinstance(mask, Tensor) and mask.dim() == 2
            else torch.arange(inputs["input_ids"].shape[1])[None]
        )
    return int(_kept(positions, inputs, num_kept, logits_to_keep)[min(row, positions.shape[0] - 1), index])
