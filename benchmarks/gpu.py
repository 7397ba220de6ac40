"""First hour on a machine with a GPU, as one command: `make gpu` or `python -m benchmarks.gpu --json gpu.json`.

Three steps: the tests marked `gpu` (captured forwards give the eager tokens, two threads, a failed capture), the loop's
own tests on this machine's versions, and the decode-speed table. Driver, clocks and commit go beside the figures, since
a figure counts only with them. Without a GPU the same steps run on the CPU, smaller, and the file says so.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding.machine import hardware, today, versions

_QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
_GPU_SHAPE = "llama2-13b,llama2-7b,llama2-7b"
_GPU_WORKLOADS = ("64:64@1", "64:256@1", "64:64@8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps and write the file; return 0 if every step passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    parser.add_argument("--shape", default=_GPU_SHAPE, help=f"of the speed table on a GPU (default {_GPU_SHAPE})")
    parser.add_argument("--rounds", type=int, default=2, help="timed runs of each variant (default 2)")
    options = parser.parse_args(argv)
    has_gpu = torch.cuda.is_available()
    speed_rows = options.json.with_suffix(".speed.json")
    steps = {
        "gpu tests": _pytest("-m", "gpu", "tests"),
        "loop tests": _pytest("tests/hf/decoding/test_cuda_graph.py", "tests/hf/decoding/test_loop.py"),
        "decode speed": _speed(options, speed_rows, has_gpu=has_gpu),
    }
    record: dict[str, Any] = {"date": today(), "device": hardware(torch.device("cuda" if has_gpu else "cpu"))}
    record |= {"has_gpu": has_gpu, "driver": _driver(), "commit": _commit(), "versions": versions(), "steps": {}}
    for name, command in steps.items():
        sys.stderr.write(f"{name}: {' '.join(command[1:])}\n")
        started = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        record["steps"][name] = {"exit_code": code, "seconds": round(time.perf_counter() - started, 1)}
        if not has_gpu and name == "gpu tests":
            record["steps"][name]["note"] = "not run: no CUDA device"
    if speed_rows.is_file():
        record["speed"] = json.loads(speed_rows.read_text(encoding="utf-8"))
        speed_rows.unlink()
    options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stderr.write(f"{options.json}: written\n")
    return max(int(step["exit_code"]) for step in record["steps"].values())


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _speed(options: argparse.Namespace, rows: Path, *, has_gpu: bool) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.speed", "--json", str(rows), "--rounds", str(options.rounds)]
    if not has_gpu:
        return [*command, "--quick", "--variants", "base", "naive", "plain"]
    return [*command, "--shape", options.shape, "--workloads", *_GPU_WORKLOADS]


def _driver() -> str | None:
    """Return the driver's own line on GPU, clocks and power; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() or None


def _commit() -> str | None:
    """Return the commit of the checkout, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit(main())
