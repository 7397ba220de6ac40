"""Memory of this machine, and whether the roles fit into it with how many tokens of cache."""

import importlib
import platform
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proxytune.cli.footprint import Footprint
from proxytune.errors import OptionError

CPU_SPACE = "VLLM_CPU_KVCACHE_SPACE"  # GiB for the cache of each of vLLM's workers on a CPU
_UTILIZATION = 0.92  # vLLM's own default
_NUM_LONGEST_REQUESTS = 32
_CGROUP = Path("/sys/fs/cgroup")
_SPREAD = "all devices"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one device, `cpu` or `cuda:N`; in bytes."""

    place: str
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory the roles on one device need, against what they may take there; in bytes."""

    place: str
    free_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int

    @property
    def fits(self) -> bool:
        """True if the weights and at least one token of cache fit."""
        return self.weight_bytes + self.kv_bytes_per_token <= self.free_bytes

    @property
    def num_cache_tokens(self) -> int | None:
        """Tokens of cache that fit beside the weights, over all rows; None where no cache is."""
        if self.kv_bytes_per_token == 0:
            return None
        return max(0, self.free_bytes - self.weight_bytes) // self.kv_bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result of the check that the roles fit.

    Attributes:
        needs: One per device that holds a role.
        max_context: Longest request; None if nothing limits it.
        problem: Why the engine would not start, beside a device that is too small.
        way_out: Remedy where one is.
        tokens_per_request: Of a request, prompt and answer; None is the longest.
    """

    needs: tuple[Need, ...]
    max_context: int | None
    problem: str | None = None
    way_out: str = "load them in fewer bits (--load-in-8bit), or spread them by --device-map"
    tokens_per_request: int | None = None

    @property
    def fits(self) -> bool:
        """True if every device has enough."""
        return self.reason() is None

    @property
    def num_cache_tokens(self) -> int:
        """Tokens of cache that fit on every device."""
        return min((tokens for need in self.needs if (tokens := need.num_cache_tokens) is not None), default=0)

    def reason(self) -> str | None:
        """Return why they do not fit; None if they do."""
        if self.problem is not None:
            return self.problem
        short = next((need for need in self.needs if not need.fits), None)
        if short is None:
            return None
        needed = gib(short.weight_bytes)
        return f"{short.place} has {gib(short.free_bytes)} for roles whose weights need {needed}; {self.way_out}"

    def row(self) -> dict[str, Any]:
        """Return the verdict as JSON has it."""
        devices = [asdict(need) | {"fits": need.fits, "num_cache_tokens": need.num_cache_tokens} for need in self.needs]
        length = self.tokens_per_request or self.max_context
        reason = self.reason()
        rows = f", {self.num_cache_tokens // length:,} requests of {length:,}" if length else ""
        text = f"fits: {self.num_cache_tokens:,} tokens of cache beside the weights{rows} (activations come on top)."
        return {
            "fits": reason is None,
            "num_cache_tokens": self.num_cache_tokens,
            "tokens_per_request": length,
            "num_requests": self.num_cache_tokens // length if length else None,
            "places": devices,
            "text": text if reason is None else f"does not fit: {reason}.",
        }


def judge(roles: Sequence[Footprint], machine: Sequence[Memory]) -> Verdict:
    """Return the verdict on roles that transformers loads where their device maps say."""
    roles_by_device: dict[str, list[Footprint]] = {}
    for role in roles:
        roles_by_device.setdefault(_place(role.device_map, machine), []).append(role)
    free = {memory.place: memory.free_bytes for memory in machine}
    weights = {
        device: sum(role.weight_bytes for role in device_roles) for device, device_roles in roles_by_device.items()
    }
    left = {device: max(0, size - weights.get(device, 0)) for device, size in free.items()}
    free[_SPREAD] = sum(left[device] for device in _pool(machine))
    needs = tuple(
        Need(
            place=device,
            free_bytes=free.get(device, 0),
            weight_bytes=weights[device],
            kv_bytes_per_token=sum(role.kv_bytes_per_token for role in device_roles),
        )
        for device, device_roles in roles_by_device.items()
    )
    return Verdict(needs=needs, max_context=_shortest(roles))


def judge_engine(
    roles: Sequence[Footprint],
    machine: Sequence[Memory],
    options: Mapping[str, Any],
    environment: Mapping[str, str],
    tokens_per_request: int | None = None,
) -> Verdict:
    """Return the verdict on models that vLLM loads with these engine options; each worker takes an equal part.

    vLLM gives cache in blocks, and on a GPU takes activations and graphs off it, so a little less fits.

    Raises:
        OptionError: An option is out of range.
    """
    device = "cuda" if machine[0].place.startswith("cuda") else "cpu"
    devices = [memory for memory in machine if memory.place.startswith(device)]
    num_workers = _whole(options, "tensor_parallel_size", 1) * _whole(options, "pipeline_parallel_size", 1)
    used = min(devices[:num_workers], key=lambda memory: memory.free_bytes)
    num_sharing = num_workers if device == "cpu" else 1  # of one memory
    weight_bytes = -(-sum(role.weight_bytes for role in roles) // num_workers)
    kv_bytes = -(-sum(role.kv_bytes_per_token for role in roles) // num_workers)
    if str(options.get("kv_cache_dtype", "auto")).startswith("fp8"):
        kv_bytes //= 2 if roles[0].dtype in ("bfloat16", "float16") else 4
    part, cache_bytes = _part(options), _cache_bytes(options, environment, device)
    requested_bytes = (
        num_sharing * (cache_bytes + weight_bytes) if cache_bytes is not None else int(used.total_bytes * part)
    )
    limit = _whole(options, "max_model_len", 0) if options.get("max_model_len") not in (None, -1) else 0
    longest = min((length for length in (_shortest(roles), limit) if length), default=None)
    problem = None
    if num_workers > len(devices) and device == "cuda":
        problem = f"{num_workers} GPUs are asked for, and there are {len(devices)}: lower tensor_parallel_size"
    elif requested_bytes > used.free_bytes:
        how = f"{CPU_SPACE} (GiB of cache)" if device == "cpu" else "--engine-option gpu_memory_utilization=NUMBER"
        problem = f"vLLM wants {gib(requested_bytes)} of {used.place}, and {gib(used.free_bytes)} are free: set {how}"
    need = Need(
        place=used.place,
        free_bytes=requested_bytes // num_sharing,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes,
    )
    tokens = need.num_cache_tokens or 0
    if problem is None and need.fits and longest and tokens < longest:
        problem = (
            f"a request of {longest:,} tokens needs more than the cache of {tokens:,}: pass --engine-option "
            f"max_model_len={tokens}, or give the cache more memory"
        )
    if tokens_per_request is not None and longest is not None and tokens_per_request > longest:
        raise OptionError(f"--tokens-per-request is {tokens_per_request}, and a request has at most {longest} here.")
    way_out = "raise --tensor-parallel-size on GPUs, or take models that are quantised on disk"
    return Verdict(
        needs=(need,), max_context=longest, problem=problem, way_out=way_out, tokens_per_request=tokens_per_request
    )


def size_cpu_cache(
    roles: Sequence[Footprint], options: Mapping[str, Any], environment: MutableMapping[str, str], memory: Memory
) -> None:
    """Write into `environment` how much cache vLLM may take on a CPU, unless it was said: it would take nearly all.

    Half of what the weights leave, at most for `_NUM_LONGEST_REQUESTS` requests of the full length.

    Raises:
        OptionError: Not even 1 GiB is left, or it does not hold one request of the full length.
    """
    if environment.get(CPU_SPACE) or options.get("kv_cache_memory_bytes") or options.get("gpu_memory_utilization"):
        return
    num_workers = _whole(options, "tensor_parallel_size", 1) * _whole(options, "pipeline_parallel_size", 1)
    left = memory.free_bytes - sum(role.weight_bytes for role in roles)
    kv_bytes = sum(role.kv_bytes_per_token for role in roles)
    longest = _whole(options, "max_model_len", 0) or _shortest(roles) or 0
    useful = -(-_NUM_LONGEST_REQUESTS * longest * kv_bytes // 2**30)
    environment[CPU_SPACE] = str(max(1, min(left // 2**31 // num_workers, useful or 4)))
    reason = judge_engine(roles, [memory], options, environment).reason()
    if reason is not None:
        raise OptionError(f"the roles do not fit into this machine's memory: {reason}.")


def memories() -> list[Memory]:
    """Return the memory of every GPU, then of the CPU."""
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        gpus.append(Memory(place=f"cuda:{number}", name=name, total_bytes=total, free_bytes=free))
    return [*gpus, cpu_memory()]


def cpu_memory() -> Memory:
    """Return what this process may use: a container's limit counts where it is below the machine's."""
    memory = importlib.import_module("psutil").virtual_memory()  # comes with accelerate
    total, free = memory.total, memory.available
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    name = platform.processor() or platform.machine()
    return Memory(place="cpu", name=name, total_bytes=total, free_bytes=max(0, free))


def gib(size: float) -> str:
    """Return bytes for people to read.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.00 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _shortest(roles: Sequence[Footprint]) -> int | None:
    return min((role.max_context for role in roles if role.max_context is not None), default=None)


def _pool(machine: Sequence[Memory]) -> list[str]:
    """Return the devices an automatic device map spreads over: the GPUs, or the CPU where there is none."""
    return [memory.place for memory in machine if memory.place != "cpu"] or ["cpu"]


def _place(device_map: Any, machine: Sequence[Memory]) -> str:
    """Return where a device map puts a role."""
    if device_map is None:
        return _pool(machine)[0]
    if isinstance(device_map, dict):
        targets = {_place(target, machine) for target in device_map.values()}
        return targets.pop() if len(targets) == 1 else _SPREAD
    name = f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)
    if name == "cpu" or name.startswith("cuda:"):
        return name
    if name == "cuda":
        return "cuda:0"
    return _SPREAD if len(_pool(machine)) > 1 else _pool(machine)[0]


def _whole(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if type(value) is not int or (value < 1 and value != default):
        raise OptionError(f"{name} is {value!r}: it must be a whole number of at least 1.")
    return value


def _part(options: Mapping[str, Any]) -> float:
    value = options.get("gpu_memory_utilization", _UTILIZATION)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise OptionError(f"gpu_memory_utilization is {value!r}: it must be a number above 0 and at most 1.")
    return float(value)


def _cache_bytes(options: Mapping[str, Any], environment: Mapping[str, str], device: str) -> int | None:
    """Return what was said outright of one worker's cache, None where it gets what the weights leave."""
    space = environment.get(CPU_SPACE) if device == "cpu" else None
    if not space:
        return _whole(options, "kv_cache_memory_bytes", 0) or None
    if not space.isdecimal():
        raise OptionError(f"{CPU_SPACE} is {space!r}: it must be a whole number of GiB.")
    return int(space) * 2**30


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
