"""Rows to tensors, and many rows to batches that fit into memory."""

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from proxytune.completion import Request
from proxytune.errors import ProxyTuneWarning
from proxytune.hf.role import RolePrompt
from proxytune.steering import Strengths

Result = TypeVar("Result")


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> RolePrompt:
    """Return rows of ids as `[B, T]` with padding on the left; no mask when nothing is padded.

    >>> left_pad([[5], [6, 7]], 0, torch.device("cpu")).input_ids.tolist()
    [[0, 5], [6, 7]]
    """
    width = max(len(row) for row in rows)
    padded = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == width for row in rows):
        return RolePrompt(padded)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return RolePrompt(padded, mask)


def role_prompts(
    rows: Sequence[Sequence[Sequence[int]]], pad_id: int, device: torch.device
) -> tuple[RolePrompt, list[RolePrompt | None]]:
    """Return the base's padded prompt and, per role, its own (None where it reads what the base reads).

    Args:
        rows: For each row the ids of every role, base first.
        pad_id: Fills the left; masked everywhere.
        device: Of the base.
    """
    num_roles = len(rows[0])
    base = left_pad([row[0] for row in rows], pad_id, device)
    others = [
        None if all(row[role] == row[0] for row in rows) else left_pad([row[role] for row in rows], pad_id, device)
        for role in range(1, num_roles)
    ]
    return base, [None, *others]


def strengths_of(requests: Sequence[Request]) -> Strengths:
    """Return the strengths of a batch, a row per request."""
    return Strengths.of_rows([request.alphas for request in requests])


def rows_per_batch(model: Any, requests: Sequence[Request], batch_size: int) -> int:
    """Return how many rows a forward may hold: one where a role reads a padded row otherwise than the row alone."""
    if not model.support.padding:
        return 1
    limits = [role.rope_limit for role in model.roles if role.rope_limit is not None]
    if not limits:
        return batch_size
    longest = max(
        max(len(ids) for ids in request.role_ids) + max(request.max_new_tokens, len(request.continuation_ids))
        for request in requests
    )
    return 1 if longest > min(limits) else batch_size


def longest_first(request: Request) -> int:
    """Return the sort key that puts long prompts first."""
    return -request.length


def run_in_batches(
    requests: Sequence[Request],
    batch_size: int,
    run: Callable[[Sequence[Request]], Result],
    order: Callable[[Request], Any] = longest_first,
) -> Iterator[tuple[Sequence[Request], Result]]:
    """Run all requests, longest first, in batches of like length; on out-of-memory halve the batch and go on.

    The longest come first so that memory runs out at once or never; another `order` is a sort key that keeps to this.

    Yields:
        A batch and what `run` made of it.

    Raises:
        torch.OutOfMemoryError: A single row does not fit.
    """
    waiting = deque(sorted(requests, key=order))
    while waiting:
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        result = _run_or_none(batch, run)
        if result is not None:
            yield batch, result
            continue
        waiting.extendleft(reversed(batch))
        batch_size = max(1, len(batch) // 2)
        warnings.warn(
            f"out of memory with {len(batch)} rows: going on with {batch_size}.", ProxyTuneWarning, stacklevel=3
        )


def _run_or_none(batch: Sequence[Request], run: Callable[[Sequence[Request]], Result]) -> Result | None:
    """Return the result, or None when memory ran out and a smaller batch can be tried."""
    try:
        return run(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if len(batch) == 1 or not _is_out_of_memory(error):
            raise
    # Outside the except block: its traceback would keep the failed batch's tensors alive.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


# As torch's allocators on CPU and CUDA, cuBLAS and cuDNN each say it.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
