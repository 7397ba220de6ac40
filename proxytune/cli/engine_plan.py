"""How vLLM would lay out the weights and the paged cache of the roles, worked out before anything is loaded.

The rules are those of vLLM 0.32 for decoders that attend to everything: all layers of all roles share one block table,
so a block holds `block_size` tokens of every layer, and the pool keeps one block for itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from proxytune.cli.engine_settings import CPU_SPACE, EngineSettings
from proxytune.cli.footprint import Footprint
from proxytune.cli.machine import Memory
from proxytune.cli.verdict import gib


@dataclass(frozen=True, kw_only=True)
class EngineRole:
    """What one model takes of each worker, in bytes; an expert merged from an adapter is a whole model."""

    name: str
    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What each worker's device holds, in bytes, and what fits.

    Weights count as shared out evenly; activations and CUDA graphs, which vLLM measures when it starts, come off the
    cache on a GPU.

    Attributes:
        settings: Of the engine.
        roles: The models it loads, base first.
        place: The fullest device.
        total_bytes: Of its memory.
        free_bytes: Likewise.
        num_devices: How many there are.
        max_model_len: Longest request, None if nothing limits it.
    """

    settings: EngineSettings
    roles: tuple[EngineRole, ...]
    place: str
    total_bytes: int
    free_bytes: int
    num_devices: int
    max_model_len: int | None

    @property
    def weight_bytes(self) -> int:
        """Of all roles."""
        return sum(role.weight_bytes for role in self.roles)

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all roles."""
        return sum(role.kv_bytes_per_token for role in self.roles)

    @property
    def cache_bytes(self) -> int:
        """What the cache may take."""
        if self.settings.cache_bytes is not None:
            return self.settings.cache_bytes
        return max(0, int(self.total_bytes * self.settings.memory_utilization) - self.weight_bytes)

    @property
    def num_blocks(self) -> int:
        """Blocks of cache."""
        if self.settings.num_blocks is not None:
            return self.settings.num_blocks
        return self.cache_bytes // (self.kv_bytes_per_token * self.settings.block_size)

    @property
    def num_tokens(self) -> int:
        """Tokens of cache, as vLLM reports them."""
        return self.num_blocks * self.settings.block_size

    def num_requests(self, num_tokens: int) -> int:
        """Return how many requests of this many tokens, prompt and answer, can be in the cache at once."""
        blocks_each = -(-num_tokens // self.settings.block_size)
        return max(0, self.num_blocks - 1) // blocks_each

    def problem(self) -> str | None:
        """Return why vLLM would not start, with the way out; None if it would."""
        workers = self.settings.num_workers
        if self.settings.device == "cuda" and workers > self.num_devices:
            return f"{workers} GPUs are asked for, and there are {self.num_devices}: lower tensor_parallel_size"
        return self._weights_problem() or self._budget_problem() or self._length_problem()

    def text(self) -> str:
        """Return the verdict as a sentence."""
        problem = self.problem()
        if problem is not None:
            return f"does not fit: {problem}."
        longest = self.max_model_len
        rows = f", {self.num_requests(longest):,} requests of {longest:,}" if longest else ""
        rest = " (activations and CUDA graphs come off)" if self.settings.device == "cuda" else ""
        return f"fits: {self.num_tokens:,} tokens of cache in {self.num_blocks:,} blocks{rows}{rest}."

    def _weights_problem(self) -> str | None:
        limit = self.free_bytes if self.settings.device == "cpu" else self.total_bytes
        needed = self.weight_bytes * (self.settings.num_workers if self.settings.device == "cpu" else 1)
        if needed < limit:
            return None
        return (
            f"the weights take {gib(needed)} of {self.place}, which has {gib(limit)}: raise --tensor-parallel-size on "
            "GPUs, or take models that are quantised on disk"
        )

    def _budget_problem(self) -> str | None:
        """Return why the memory that vLLM would reserve is not there."""
        settings = self.settings
        part = int(self.total_bytes * settings.memory_utilization)
        if settings.cache_bytes is None:
            if part > self.free_bytes:
                other = f", or set {CPU_SPACE} (GiB of cache)" if settings.device == "cpu" else ""
                return (
                    f"vLLM wants {settings.memory_utilization:g} of {self.place} ({gib(part)}), and "
                    f"{gib(self.free_bytes)} are free: lower it by --engine-option gpu_memory_utilization=NUMBER{other}"
                )
            return None
        workers = settings.num_workers if settings.device == "cpu" else 1
        needed = workers * (settings.cache_bytes + self.weight_bytes)
        if needed > self.free_bytes:
            how = CPU_SPACE if settings.device == "cpu" else "kv_cache_memory_bytes"
            return f"cache and weights take {gib(needed)}, and {gib(self.free_bytes)} are free: lower {how}"
        return None

    def _length_problem(self) -> str | None:
        """Return why not even one request has room."""
        longest = self.max_model_len or 1
        if self.num_requests(longest) > 0:
            return None
        room = max(0, self.num_blocks - 1) * self.settings.block_size
        if room:
            return f"a request of {longest:,} tokens needs more than the cache of {room:,}: pass " + (
                f"--engine-option max_model_len={room}, or give the cache more memory"
            )
        return f"the {gib(self.cache_bytes)} that are left hold no block of cache beside the pool's own: give it more"


def plan_engine(
    roles: Sequence[Footprint],
    machine: Sequence[Memory],
    settings: EngineSettings,
    *,
    merged: Collection[str] = (),
    has_draft: bool = False,
) -> EnginePlan:
    """Return the plan for these roles on this machine; the least free of the devices that are used counts.

    `merged` names the experts whose adapters do not share the anti's weights; `has_draft` says that the first expert is
    loaded once more to draft.
    """
    devices = [memory for memory in machine if memory.place.startswith(settings.device)]
    used = min(devices[: settings.num_workers], key=lambda memory: memory.free_bytes)
    contexts = [role.max_context for role in roles if role.max_context is not None]
    longest = min(contexts, default=settings.max_model_len)
    if settings.max_model_len is not None and longest is not None:
        longest = min(longest, settings.max_model_len)
    by_name = {role.name: role for role in roles}
    distinct = [
        _engine_role(role, by_name, settings, is_merged=role.name in merged)
        for role in roles
        if not _is_loaded_already(role, by_name)
    ]
    if has_draft:
        distinct.append(replace(_engine_role(roles[1], by_name, settings, is_merged=True), name="draft"))
    return EnginePlan(
        settings=settings,
        roles=tuple(distinct),
        place=used.place,
        total_bytes=used.total_bytes,
        free_bytes=used.free_bytes,
        num_devices=len(devices),
        max_model_len=longest,
    )


def _is_loaded_already(role: Footprint, by_name: dict[str, Footprint]) -> bool:
    """Return whether another role is the same model; an adapter over it is another one."""
    return role.weights_from is not None and by_name[role.weights_from].source == role.source


def _engine_role(
    role: Footprint, by_name: dict[str, Footprint], settings: EngineSettings, *, is_merged: bool
) -> EngineRole:
    """Return the part of one worker; where there are fewer heads of keys than workers, each keeps one."""
    whole = role
    while whole.weights_from is not None and is_merged:
        whole = by_name[whole.weights_from]
    heads = max(1, role.num_kv_heads // settings.tensor_parallel_size)
    kv_bytes = role.kv_bytes_per_token * heads // role.num_kv_heads
    if settings.has_small_cache:
        kv_bytes //= int(getattr(torch, role.dtype).itemsize)
    return EngineRole(
        name=role.name,
        weight_bytes=-(-whole.weight_bytes // settings.num_workers),
        kv_bytes_per_token=-(-kv_bytes // settings.pipeline_parallel_size),
    )
