"""Connections are kept, taken back rows are not repeated, and closing ends what is in flight."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from proxytune.errors import RemoteError
from tests.remote.clients import VirtualClock, answers, client, queries, server
from tests.remote.faulty_proxy import FaultyProxy


def test_connections_are_kept() -> None:
    """200 requests, 8 at once, open at most 8 connections."""
    with server(max_logprobs=20) as found:
        model = client(found.url, max_in_flight=8)
        answers(model, queries() * 50)
        assert len(found.completions) > 200
        assert found.num_connections <= 8
        model.close()


def test_closing_ends_rows_in_flight() -> None:
    """Ten rows wait for a server that stalls: closing gives each its error, and no thread is left."""
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        model = client(proxy.url, timeout_s=600.0, max_in_flight=4)
        proxy.script, proxy.is_active = ("stall",) * 99, True
        futures = model.submit(queries() * 3)
        while len(proxy.given) < 4:
            threading.Event().wait(0.01)
        model.close()
        for future in futures:
            with pytest.raises(RemoteError, match="was closed"):
                future.result(timeout=60)
        assert not [thread for thread in threading.enumerate() if thread.name == "proxytune-remote"]
        [late] = model.submit(queries()[:1])
        assert isinstance(late.exception(timeout=60), RemoteError)
        model.close()


def test_row_taken_back_is_not_repeated() -> None:
    """Cancelled in the middle of its back-off, a row sends no further request, and whoever waits for it is told."""
    clock = HeldClock()
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        model = client(proxy.url, clock=clock)
        proxy.given.clear()
        proxy.script, proxy.is_active = ("500",), True
        clock.is_held = True
        [future] = model.submit(queries()[:1])
        clock.reached.wait(60)
        assert future.cancel()
        assert wait([future], timeout=60).not_done == set()
        clock.is_held = False
        clock.let_go.set()
        answers(model, queries())
        assert proxy.given == ["500", *[None] * len(queries())]
        model.close()


class HeldClock(VirtualClock):
    """A clock whose waits can be held until the test goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        self.reached = threading.Event()
        self.let_go = threading.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait for the test, if it says so."""
        await super().sleep(seconds)
        if self.is_held:
            self.reached.set()
            while not self.let_go.is_set():
                await asyncio.sleep(0.01)


def test_interpreter_ends_although_a_server_stalls() -> None:
    """A script that is interrupted while it waits ends at once, although nobody closed anything."""
    script = """
import signal, sys, threading
from tests.remote.clients import client, queries
model = client(sys.argv[1], timeout_s=600.0)
print("ready", flush=True)
sys.stdin.readline()
[future] = model.submit(queries()[:1])
signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.main_thread().ident
threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
future.result()
"""
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        with subprocess.Popen(
            [sys.executable, "-c", script, proxy.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            proxy.script, proxy.is_active = ("stall",) * 99, True
            _, errors = process.communicate("\n", timeout=120)
        assert "stall" in proxy.given
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors


def test_client_that_nobody_holds_ends_its_threads() -> None:
    """Without `close`, the last reference ends connections and threads."""
    with server() as found:
        model = client(found.url)
        answers(model, queries())
        threads = [thread for thread in threading.enumerate() if thread.name == "proxytune-remote"]
        assert threads
        del model
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
