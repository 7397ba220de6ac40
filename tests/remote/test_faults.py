"""A server that fails in every way: each row ends right or with its own error, and retries are bounded."""

import pytest

from proxytune.errors import RemoteError, RoleError
from proxytune.remote.distribution import Query
from tests.remote.clients import VirtualClock, answers, client, queries, require_likeliest, server, token_ids
from tests.remote.faulty_proxy import FAULTS, FaultyProxy

NUM_ROWS = 60


def rows() -> list[Query]:
    """Return 60 different questions, every third one for three places."""
    ids = token_ids("Question: Where was Jora Quillmere born?\nAnswer: In the town of") * 10
    return [Query(ids[place : place + 6 + place % 7], 3 if place % 3 == 0 else 1) for place in range(NUM_ROWS)]


@pytest.mark.parametrize("way", ["prompt_logprobs", "prompts", "single"])
def test_storm_of_all_faults_loses_and_doubles_no_row(way: str) -> None:
    """Half of the requests fail, in 13 ways: 60 rows end right or with an error of their own, 1 + 6 tries at most each.

    The server answers no more often than the client has sent, and every row it answered well is a right one.
    """
    clock = VirtualClock()
    with server(max_logprobs=20) as behind, FaultyProxy(behind.url, rate=0.5, seed=7, is_active=False) as proxy:
        model = client(proxy.url, clock=clock, timeout_s=1.0, max_retries=6, max_in_flight=8, verification=way)
        before = model.usage
        proxy.given.clear()
        behind.recorded.clear()
        proxy.is_active = True
        asked = rows()
        futures = model.submit(asked)
        errors = [future.exception(timeout=120) for future in futures]
        for query, future, error in zip(asked, futures, errors, strict=True):
            if error is None:
                require_likeliest(future.result(), query, 20)
        after = model.usage
        model.close()
    num_asked = sum(query.num_positions if way == "single" else 1 for query in asked)
    num_requests = after.num_requests - before.num_requests
    num_retries = after.num_retries - before.num_retries
    failed = [error for error in errors if error is not None]
    assert all(isinstance(error, RemoteError) and "failed 7 times" in str(error) for error in failed)
    assert len(set(map(id, failed))) == len(failed) < NUM_ROWS / 3
    # A row of several requests that fails takes back the others, of which one may be on its way.
    assert len(proxy.given) == num_requests or (way == "single" and len(proxy.given) < num_requests)
    assert num_requests - num_retries <= num_asked
    assert num_requests <= 7 * num_asked
    assert len(behind.completions) <= num_requests
    assert set(proxy.given) == {None, *FAULTS}
    assert proxy.given.count(None) >= NUM_ROWS - len(failed)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_got_over(fault: str) -> None:
    """Whatever fails twice in a row, the third answer is taken: two retries, and the row is right."""
    clock = VirtualClock()
    with server(max_logprobs=20) as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        # Short only where a timeout is what is tested: on a busy machine an answer may take a second.
        model = client(proxy.url, clock=clock, timeout_s=3.0 if "stall" in fault else 30.0)
        before = model.usage.num_retries
        proxy.given.clear()
        proxy.script, proxy.is_active = (fault, fault), True
        query = queries()[0]
        require_likeliest(answers(model, [query])[0], query, 20)
        assert proxy.given == [fault, fault, None]
        assert model.usage.num_retries - before == 2
        model.close()


def test_row_gives_up_behind_the_last_retry() -> None:
    """max_retries=2 sends a request three times, then the row has an error with the last status and what to do."""
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        model = client(proxy.url, clock=VirtualClock(), max_retries=2)
        proxy.given.clear()
        proxy.script, proxy.is_active = ("503",) * 9, True
        [future] = model.submit(queries()[:1])
        with pytest.raises(
            RemoteError, match=r"failed 3 times.*503 \(made up: 503\).*raise max_retries \(2\)"
        ) as caught:
            future.result(timeout=60)
        assert caught.value.status == 503
        assert len(proxy.given) == 3
        model.close()


def test_back_off_doubles_and_retry_after_is_respected() -> None:
    """Waits grow twofold within their jitter of half; a Retry-After of 7 s is waited for, one of a year is bounded."""
    clock = VirtualClock()
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        model = client(proxy.url, clock=clock)
        clock.waits.clear()
        proxy.given.clear()
        proxy.script, proxy.is_active = ("503",) * 4, True
        answers(model, queries()[:1])
        assert all(0.25 * 2**place <= wait <= 0.5 * 2**place for place, wait in enumerate(clock.waits))
        assert len(clock.waits) == 4
        for header, least, most in (("7", 7, 7), ("31536000", 60, 60), ("soon", 0.25, 0.5), ("-5", 0.25, 0.5)):
            clock.waits.clear()
            proxy.given.clear()
            proxy.script, proxy.retry_after = ("429-retry-after",), header
            answers(model, queries()[:1])
            [wait] = clock.waits
            assert least <= wait <= most
        assert model.usage.waited_s == pytest.approx(clock.now())
        model.close()


def test_refusal_is_not_repeated() -> None:
    """A 400 is the row's error at once, with the server's words; the other rows go on."""
    with server() as found:
        model = client(found.url)
        found.recorded.clear()
        too_long = Query(token_ids("The")[:1] * 300)
        good, bad = model.submit([queries()[0], too_long])
        with pytest.raises(RemoteError, match=r"400: This model's maximum context length is 256 tokens") as caught:
            bad.result(timeout=60)
        assert caught.value.status == 400
        assert good.result(timeout=60)
        assert len(found.completions) == 2
        assert model.usage.num_retries == 0
        model.close()


def test_faults_during_construction_are_got_over() -> None:
    """A server that fails a third of the time is found to be able to do the same as one that never does."""
    with server(max_logprobs=20) as behind:
        quiet = client(behind.url)
        with FaultyProxy(behind.url, rate=0.35, seed=3, faults=("429", "500", "drop", "half-body")) as proxy:
            model = client(proxy.url, clock=VirtualClock(), max_retries=12)
            assert model.abilities == quiet.abilities
            assert any(proxy.given)
            model.close()
        quiet.close()


def test_server_that_is_not_there_is_a_role_error() -> None:
    """Nobody listens: construction ends with where and how often, and with what to do."""
    with server() as gone:
        url = gone.url
    with pytest.raises(RoleError, match=r"/models failed 2 times.*no connection.*check the server"):
        client(url, clock=VirtualClock(), max_retries=1)
