"""Statistics of decoding: counts of a batch, seconds by role, and the bytes a token must read."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from proxytune.completion import DecodingStats


class Stopwatch:
    """Adds up seconds by name; does nothing, and costs nothing, unless it runs."""

    def __init__(self, device: torch.device | None) -> None:
        """`device`: what to wait for before the clock is read; None for a watch that stands still."""
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what happens inside under `name`."""
        if self._device is None:
            yield
            return
        started = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class DecodeCounters:
    """Counts of steps, tokens, and drafts kept by their position among the drafts."""

    def __init__(self) -> None:
        self.num_first_tokens = 0
        self.num_steps = -1  # the prompts' does not count
        self.num_row_steps = 0
        self.num_tokens = 0
        self.proposed: list[int] = []
        self.accepted: list[int] = []

    def count(self, num_drafts: int, agreed: Sequence[int], emitted: Sequence[int]) -> None:
        """Count a step, the prompts' first: drafts that agreed, and tokens, of each row that took part."""
        self.num_steps += 1
        if self.num_steps == 0:
            self.num_first_tokens = sum(emitted)
            return
        self.num_row_steps += len(agreed)
        self.num_tokens += sum(emitted)
        missing = num_drafts - len(self.proposed)
        self.proposed += [0] * missing
        self.accepted += [0] * missing
        for position in range(num_drafts):
            self.proposed[position] += len(agreed)
            self.accepted[position] += sum(count > position for count in agreed)

    def stats(
        self, model: Any, *, seconds: float, role_seconds: dict[str, float], num_requests: int | None = None
    ) -> DecodingStats:
        """Return the figures of a batch of the composite `model` that took `seconds`, prompts included.

        `num_requests`: sent to a remote base.
        """
        floor = memory_roofline(model)
        base_seconds = sum(value for name, value in role_seconds.items() if "base" in name.split("+"))
        num_tokens = self.num_tokens + self.num_first_tokens
        rows = max(1, self.num_row_steps)
        return DecodingStats(
            tokens_per_second=num_tokens / seconds,
            tokens_per_cycle=self.num_tokens / rows,
            acceptance=tuple(kept / asked for kept, asked in zip(self.accepted, self.proposed, strict=True) if asked),
            num_drafted=sum(self.proposed) / rows,
            num_cycles=max(0, self.num_steps),
            num_tokens=num_tokens,
            role_seconds=dict(role_seconds),
            floor_bytes=floor.bytes_per_token,
            floor_ratio=floor.ratio,
            ratio=seconds / base_seconds if base_seconds else None,
            requests_per_token=None if num_requests is None else num_requests / max(1, num_tokens),
        )


@dataclass(frozen=True)
class MemoryRoofline:
    """Bytes of weights that one token of plain decoding must read, and their multiple of the base's own."""

    bytes_per_token: int
    ratio: float | None


def memory_roofline(model: Any) -> MemoryRoofline:
    """Return the composite's floor: input embeddings excluded, weights that roles share counted once."""
    seen: set[int] = set()
    by_model = [_weight_bytes(part, seen) for part in {id(role.model): role.model for role in model.roles}.values()]
    return MemoryRoofline(sum(by_model), sum(by_model) / by_model[0] if by_model[0] else None)


def _weight_bytes(model: Any, seen: set[int]) -> int:
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    head = getattr(model.get_output_embeddings(), "weight", None)
    total = 0
    for parameter in model.parameters():
        is_only_looked_up = parameter is embedding and parameter is not head
        if id(parameter) not in seen and not is_only_looked_up:
            seen.add(id(parameter))
            total += parameter.numel() * parameter.element_size()
    return total
