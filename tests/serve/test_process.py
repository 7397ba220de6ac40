"""The server as a process: what others can see of it, and how it ends."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from tests.serve.conftest import KEY, QUESTION, Server, free_port, start


def family(root: int) -> set[int]:
    """Return a process and those it started, by their ids."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in lines)}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def left_over(pids: set[int]) -> set[int]:
    """Return those that go on running; what ends with its parent has half a minute, what waits to be reaped is gone."""
    deadline = time.monotonic() + 30
    while True:
        lines = subprocess.run(
            ["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        running = {int(pid) for pid, state in (line.split() for line in lines) if not state.startswith("Z")}
        if not pids & running or time.monotonic() > deadline:
            return pids & running
        time.sleep(0.2)


def test_key_is_nowhere_to_be_seen(server: Server) -> None:
    """The key is on no command line, in no engine process's environment, and not in the log."""
    assert server.completion(prompt="a").status_code == 200
    pids = family(server.process.pid)
    assert len(pids) > 1
    for pid in pids:
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert KEY not in server.log.read_text(errors="replace")


def test_listens_on_this_machine_only(server: Server) -> None:
    """The port is bound on 127.0.0.1 and on no other address; a clear line says where."""
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.2", port))
    assert f"proxytune: serving proxytune-demo at {server.url}/v1\n" in server.log.read_text(errors="replace")


@pytest.fixture
def alpaca(tmp_path: Path) -> tuple[Path, ProxyGenerator]:
    """A proxy folder over the trio with a named prompt format and another α."""
    trio = trio_path()
    generator = ProxyGenerator(
        trio / "base", trio / "expert", trio / "anti", alpha=0.5,
        base_prompt="alpaca", expert_prompt="alpaca", anti_prompt="alpaca",
    )  # fmt: skip
    generator.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder", generator


@pytest.mark.slow
def test_folder_and_end(alpaca: tuple[Path, ProxyGenerator], tmp_path: Path) -> None:
    """A proxy folder's α and format are the server's; the key may come from the environment; SIGTERM leaves nothing."""
    folder, generator = alpaca
    [expected] = generator.generate([{"role": "user", "content": "Where was person 2 born?"}], max_new_tokens=16)
    server = start(
        tmp_path / "log", ["proxytune", "serve", str(folder)], port=free_port(), key=KEY, PROXYTUNE_API_KEY=KEY
    )
    messages = [{"role": "user", "content": "Where was person 2 born?"}]
    body = {"model": "folder", "messages": messages, "max_tokens": 16, "temperature": 0}
    found = server.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == expected.text
    assert server.text(prompt=QUESTION.format(2)) == _raw(folder)
    assert httpx.get(server.url + "/v1/models", timeout=60).status_code == 401
    pids = family(server.process.pid)
    assert len(pids) > 1
    assert server.stop() == 0
    assert not left_over(pids)
    log = server.log.read_text(errors="replace")
    assert KEY not in log
    assert "proxytune: stopped." in log


def _raw(folder: Path) -> str:
    raw = ProxyGenerator.from_pretrained(folder, base_prompt="raw", expert_prompt="raw", anti_prompt="raw")
    return raw.generate(QUESTION.format(2), max_new_tokens=24)[0].text


@pytest.mark.slow
def test_plain_vllm_server(tmp_path: Path) -> None:
    """A server of vLLM's own over a proxy folder, with the plugin and nothing else: α works, or is refused."""
    trio = trio_path()
    hf = ProxyGenerator(trio / "base", trio / "expert", trio / "anti")
    hf.save_pretrained(tmp_path / "plain")
    module = "vllm.entrypoints.openai.api_server"
    command = [module, "--model", str(tmp_path / "plain"), "--host", "127.0.0.1", "--dtype", "float32"]
    server = start(tmp_path / "log", command, port=free_port())
    prompt = QUESTION.format(7)
    for alpha in (0, 1, 2):
        [expected] = hf.generate(prompt, max_new_tokens=24, alpha=alpha)
        assert server.text(prompt=prompt, vllm_xargs={"alpha": alpha}) == expected.text
    assert server.text(prompt=prompt) == hf.generate(prompt, max_new_tokens=24)[0].text
    assert server.text(prompt=prompt * 5, temperature=1, seed=4) == _drawn(hf, prompt * 5)
    for bad, sentence in (("x", "alpha is 'x'"), ([1, 2], "lists 2 numbers"), (1e9, "at most 65504")):
        response = server.completion(prompt=prompt, vllm_xargs={"alpha": bad})
        assert response.status_code == 400
        assert sentence in response.json()["error"]["message"]
    pids = family(server.process.pid)
    server.stop()
    assert not left_over(pids)


def _drawn(hf: ProxyGenerator, prompt: str) -> str:
    return hf.generate(prompt, max_new_tokens=24, temperature=1.0, seed=4)[0].text


@pytest.mark.slow
def test_dead_engine_is_an_error(tmp_path: Path) -> None:
    """When the engine's process dies, so does the server, with exit code 1 and a sentence."""
    server = start(tmp_path / "log", ["proxytune", "serve"], port=free_port())
    pids = family(server.process.pid)
    lines = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    [engine] = [int(line.split()[0]) for line in lines if "EngineCore" in line and int(line.split()[0]) in pids]
    os.kill(engine, signal.SIGKILL)
    assert server.process.wait(timeout=60) == 1
    assert "the engine ended by itself" in server.log.read_text(errors="replace")
    assert not left_over(pids)
