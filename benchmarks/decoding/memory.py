"""How much memory a run needed at its highest, beyond what was there before it."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"


def with_peak(run: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Return what `run` gave and the bytes its memory rose by at most; None where the system does not tell.

    On a GPU this is what torch's allocator had reserved, pools of graphs included; on a CPU the process's resident
    memory, which counts what an earlier run has given back to the allocator but not to the system as free.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        done = run()
        torch.cuda.synchronize(device)
        return done, torch.cuda.max_memory_reserved(device) - before
    try:
        gc.collect()  # garbage that is freed during the run would hide a rise
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        before = _resident("VmRSS")
        done = run()
        return done, max(0, _resident("VmHWM") - before)
    except OSError:
        return run(), None


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value) * 1024
