"""Servers that fail, budgets that end, and Ctrl-C: what is done stays, and nothing is lost, doubled or waited for."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from proxytune.errors import RemoteBudgetError, RemoteError
from tests.remote import rig
from tests.remote.completions_server import CompletionsServer
from tests.remote.faulty_proxy import FaultyProxy

LENGTH = 10


def begin(proxy: FaultyProxy, script: Sequence[str | None] = ()) -> None:
    """Let the proxy fail from now on; what it was asked before does not count."""
    proxy.given.clear()
    proxy.script, proxy.is_active = script, True


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    """A server that gives the whole vocabulary."""
    with rig.server() as found:
        yield found


@pytest.fixture(scope="module")
def clean(server: CompletionsServer) -> list[tuple[int, ...]]:
    """Tokens of a run in which nothing fails."""
    return rig.tokens(rig.remote(server.url).generate(rig.questions(), max_new_tokens=LENGTH, ignore_eos=True))


@pytest.mark.parametrize("speculation", ["off", 3])
def test_a_storm_ends_every_row_right_or_with_its_error(
    server: CompletionsServer, clean: list[tuple[int, ...]], speculation: Any
) -> None:
    """Through every kind of fault each prompt has one row: the clean one, or the beginning of it and its error."""
    faults = ("429", "500", "503", "drop", "drop-answered", "half-body", "garbage", "invalid-json", "wrong-shape")
    with FaultyProxy(server.url, rate=0.4, faults=faults, seed=3, is_active=False) as proxy:
        generator = rig.remote(proxy.url, speculation=speculation, max_retries=1, timeout_s=5.0)
        begin(proxy)
        found = list(generator.generate_as_done(rig.questions(), max_new_tokens=LENGTH, ignore_eos=True, batch_size=6))
    assert sorted(row.index for row in found) == list(range(16))
    for row in found:
        wanted = clean[row.index]
        if row.finish_reason == "length":
            assert (row.token_ids, row.error) == (wanted, None)
        else:
            assert row.finish_reason == "error"
            assert row.error
            assert row.token_ids == wanted[: len(row.token_ids)]
            assert len(row.token_ids) < LENGTH
        assert row.base_mass is not None
        assert len(row.base_mass) == len(row.token_ids)
    # Such a storm, and one retry, leave both kinds.
    assert {row.finish_reason for row in found} == {"length", "error"}


def test_retries_carry_a_run_through(server: CompletionsServer, clean: list[tuple[int, ...]]) -> None:
    """With retries enough, stalls among the faults, all rows are those of a clean run."""
    script = [None, "stall", "429-retry-after", None, "half-body", "500", None, "drop"]
    with FaultyProxy(server.url, retry_after="0", is_active=False) as proxy:
        generator = rig.remote(proxy.url, max_retries=4, timeout_s=1.0)
        begin(proxy, script)
        found = generator.generate(rig.questions(4), max_new_tokens=LENGTH, ignore_eos=True)
    assert rig.tokens(found) == clean[:4]


def test_a_row_that_the_server_refuses_fails_alone(server: CompletionsServer) -> None:
    """A request that is answered with 400 for good ends its own row, at once, and no other."""
    with rig.server() as picky:
        generator = rig.remote(picky.url)
        refused = tuple(rig.prompt_ids(rig.questions(4)[1]))
        answer = picky._complete

        def complete(body: dict) -> dict:  # type: ignore[type-arg]
            if tuple(body["prompt"][: len(refused)]) == refused and len(body["prompt"]) > len(refused) + 2:
                body = {**body, "prompt": [10**6]}
            return answer(body)

        picky._complete = complete  # type: ignore[method-assign]
        found = generator.generate(rig.questions(4), max_new_tokens=6, ignore_eos=True)
    assert [row.finish_reason for row in found] == ["length", "error", "length", "length"]
    assert "out of vocabulary" in (found[1].error or "")
    assert [len(row.token_ids) for row in found] == [6, 3, 6, 6]


@pytest.mark.parametrize("speculation", ["off", 3])
def test_a_budget_ends_cleanly(server: CompletionsServer, clean: list[tuple[int, ...]], speculation: Any) -> None:
    """Rows done before the budget was spent are whole, the others say "budget"; not one request more is sent."""
    spent_to_connect = rig.remote(server.url).model.base.remote.usage.num_requests
    before = len(server.completions)
    generator = rig.remote(server.url, speculation=speculation, max_requests=spent_to_connect + 45)
    found = list(generator.generate_as_done(rig.questions(), max_new_tokens=LENGTH, ignore_eos=True, batch_size=4))
    assert len(server.completions) - before == spent_to_connect + 45
    assert sorted(row.index for row in found) == list(range(16))
    done = [row for row in found if row.finish_reason == "length"]
    assert len(done) >= 4
    for row in found:
        assert row.token_ids == clean[row.index][: len(row.token_ids)]
        assert row.finish_reason in ("length", "budget")
        assert (row.error is not None) == (row.finish_reason == "budget")
    assert found[-1].token_ids == ()
    assert "max_requests" in (found[-1].error or "")


def test_a_stream_gives_what_came_and_then_raises(server: CompletionsServer, clean: list[tuple[int, ...]]) -> None:
    """A stream whose budget ends has yielded its text, and tells why there is no more."""
    spent_to_connect = rig.remote(server.url).model.base.remote.usage.num_requests
    generator = rig.remote(server.url, max_requests=spent_to_connect + 5)
    pieces: list[str] = []
    with pytest.raises(RemoteBudgetError, match="max_requests"):
        pieces.extend(generator.stream(rig.questions(1)[0], max_new_tokens=LENGTH, ignore_eos=True))
    assert rig.base_tokenizer().decode(clean[0]).startswith("".join(pieces))
    assert len("".join(pieces)) > 0


def test_scores_raise_what_the_server_said(server: CompletionsServer) -> None:
    """Scoring has no row to end: it raises."""
    with FaultyProxy(server.url, rate=1.0, faults=("500",), is_active=False) as proxy:
        generator = rig.remote(proxy.url, max_retries=0)
        begin(proxy)
        with pytest.raises(RemoteError, match="500"):
            generator.score(rig.questions(2), [" a", " b"])


def test_ctrl_c_keeps_what_was_done_and_does_not_wait(server: CompletionsServer, clean: list[tuple[int, ...]]) -> None:
    """Interrupted while a server stalls, the run raises at once; rows that were yielded are whole."""
    with FaultyProxy(server.url, is_active=False) as proxy:
        generator = rig.remote(proxy.url, timeout_s=60.0)
        rows = generator.generate_as_done(rig.questions(8), max_new_tokens=LENGTH, ignore_eos=True, batch_size=4)
        found = [next(rows) for _ in range(4)]
        begin(proxy, ["stall"] * 100)

        def interrupt() -> None:
            while not proxy.given:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(rows)
        thread.join()
        generator.close()
        assert len(proxy.given) <= 4  # what was in flight, and nothing behind it
    assert [row.token_ids for row in found] == [clean[row.index] for row in found]


def test_closing_a_stream_does_not_wait_for_the_server(server: CompletionsServer) -> None:
    """Whoever closes a stream while the server stalls has the thread back long before the time-out."""
    with FaultyProxy(server.url, is_active=False) as proxy:
        generator = rig.remote(proxy.url, timeout_s=500.0)
        stream = generator.stream(rig.questions(1)[0], max_new_tokens=LENGTH, ignore_eos=True)
        next(stream)
        begin(proxy, ["stall"] * 100)
        closing = threading.Thread(target=stream.close)
        while not proxy.given:
            time.sleep(0.02)
        closing.start()
        closing.join(timeout=30.0)
        assert not closing.is_alive()
        generator.close()
