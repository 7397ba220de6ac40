"""Whether the roles fit into this machine, and how much cache fits beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.cli.footprint import Footprint
from proxytune.cli.machine import Memory

_SPREAD = "all devices"


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the roles in one place need, against what is free there; in bytes.

    `num_cache_tokens` is how many tokens of cache, over all rows, fit beside the weights; None if there is none here.
    """

    place: str
    free_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int

    @property
    def is_enough(self) -> bool:
        """Whether the weights and at least one token of cache fit."""
        return self.weight_bytes + self.kv_bytes_per_token <= self.free_bytes

    @property
    def num_cache_tokens(self) -> int | None:
        """Tokens of cache that fit."""
        if self.kv_bytes_per_token == 0:
            return None
        return max(0, self.free_bytes - self.weight_bytes) // self.kv_bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The needs of all places together.

    Attributes:
        needs: One per place that holds a role.
        max_context: Of the shortest role, None if no role states one.
    """

    needs: tuple[Need, ...]
    max_context: int | None

    @property
    def fits(self) -> bool:
        """Whether every place has enough."""
        return all(need.is_enough for need in self.needs)

    @property
    def num_cache_tokens(self) -> int:
        """Tokens of cache that fit in every place."""
        return min((tokens for need in self.needs if (tokens := need.num_cache_tokens) is not None), default=0)

    def text(self) -> str:
        """Return the verdict as a sentence."""
        short = next((need for need in self.needs if not need.is_enough), None)
        if short is not None:
            return (
                f"does not fit: {short.place} has {gib(short.free_bytes)} free and the roles there need "
                f"{gib(short.weight_bytes)}; load them in fewer bits (--load-in-8bit), or spread them by --device-map."
            )
        tokens = self.num_cache_tokens
        rows = f", {tokens // self.max_context:,} rows of {self.max_context:,}" if self.max_context else ""
        return f"fits: {tokens:,} tokens of cache beside the weights{rows} (activations come on top)."


def judge(roles: Sequence[Footprint], machine: Sequence[Memory]) -> Verdict:
    """Return the verdict on these roles in this machine."""
    places: dict[str, list[Footprint]] = {}
    for role in roles:
        places.setdefault(_place(role.device_map, machine), []).append(role)
    free = {memory.place: memory.free_bytes for memory in machine}
    pinned = {place: sum(role.weight_bytes for role in found) for place, found in places.items()}
    needs = []
    for place, found in places.items():
        room = free.get(place, 0)
        if place == _SPREAD:
            room = sum(max(0, size - pinned.get(name, 0)) for name, size in free.items() if name in _pool(machine))
        needs.append(
            Need(
                place=place,
                free_bytes=room,
                weight_bytes=pinned[place],
                kv_bytes_per_token=sum(role.kv_bytes_per_token for role in found),
            )
        )
    contexts = [role.max_context for role in roles if role.max_context is not None]
    return Verdict(needs=tuple(needs), max_context=min(contexts, default=None))


def gib(size: float) -> str:
    """Return bytes for people to read.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.00 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _pool(machine: Sequence[Memory]) -> list[str]:
    """Return the places an automatic device map spreads over: the GPUs, or the CPU where there is none."""
    gpus = [memory.place for memory in machine if memory.place != "cpu"]
    return gpus or ["cpu"]


def _place(device_map: Any, machine: Sequence[Memory]) -> str:
    """Return where a device map puts a role."""
    if device_map is None:
        return _pool(machine)[0]
    if isinstance(device_map, dict):
        targets = {_place(target, machine) for target in device_map.values()}
        return targets.pop() if len(targets) == 1 else _SPREAD
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    name = str(device_map)
    if name == "cpu" or name.startswith("cuda:"):
        return name
    if name == "cuda":
        return "cuda:0"
    return _SPREAD if len(_pool(machine)) > 1 else _pool(machine)[0]
