"""What decoding did and what it cost: counts of a batch, and seconds by role where they were asked for."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class Tally:
    """Counts cycles, tokens, and drafts kept by their place in the draft."""

    def __init__(self) -> None:
        self.num_first_tokens = 0
        self.num_cycles = 0
        self.num_row_cycles = 0
        self.num_tokens = 0
        self.proposed: list[int] = []
        self.accepted: list[int] = []

    def count_first(self, num_tokens: int) -> None:
        """Note the tokens that the prompts gave, before any cycle."""
        self.num_first_tokens = num_tokens

    def count(self, width: int, agreed: Sequence[int], emitted: Sequence[int]) -> None:
        """Note a cycle: `agreed` drafts of `width − 1` and `emitted` tokens of each row that took part."""
        self.num_cycles += 1
        self.num_row_cycles += len(agreed)
        self.num_tokens += sum(emitted)
        missing = width - 1 - len(self.proposed)
        self.proposed += [0] * missing
        self.accepted += [0] * missing
        for place in range(width - 1):
            self.proposed[place] += len(agreed)
            self.accepted[place] += sum(count > place for count in agreed)

    def stats(
        self, *, seconds: float, role_seconds: dict[str, float], floor: "Floor", num_requests: int | None = None
    ) -> DecodingStats:
        """Return the figures of a batch that took `seconds`, prompts included, and requests to a remote base."""
        base_seconds = sum(value for name, value in role_seconds.items() if "base" in name.split("+"))
        num_tokens = self.num_tokens + self.num_first_tokens
        rows = max(1, self.num_row_cycles)
        return DecodingStats(
            tokens_per_second=num_tokens / seconds,
            tokens_per_cycle=self.num_tokens / rows,
            acceptance=tuple(kept / asked for kept, asked in zip(self.accepted, self.proposed, strict=True) if asked),
            num_drafted=sum(self.proposed) / rows,
            num_cycles=self.num_cycles,
            num_tokens=num_tokens,
            role_seconds=dict(role_seconds),
            floor_bytes=floor.bytes_per_token,
            floor_ratio=floor.ratio,
            ratio=seconds / base_seconds if base_seconds else None,
            requests_per_token=None if num_requests is None else num_requests / max(1, num_tokens),
        )


class Floor:
    """The bytes of weights that one token of plain decoding must read, input embeddings excluded."""

    def __init__(self, model: Any) -> None:
        """`model`: the composite; weights that roles share count once."""
        seen: set[int] = set()
        self._by_model = []
        for part in {id(role.model): role.model for role in model.roles}.values():
            self._by_model.append(_weight_bytes(part, seen))
        self.bytes_per_token = sum(self._by_model)
        self.ratio = self.bytes_per_token / self._by_model[0] if self._by_model[0] else None


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
