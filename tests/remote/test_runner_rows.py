"""The runner of a remote base by itself: what rows have read, what they ask for, and which of them fail."""

from collections.abc import Iterator

import pytest
import torch

from proxytune.errors import RemoteError
from proxytune.hf.decoding.remote_runner import RemoteRunner
from tests.remote import rig
from tests.remote.completions_server import CompletionsServer

PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    """A server that gives the whole vocabulary."""
    with rig.server() as found:
        yield found


def new_runner(server: CompletionsServer, **settings: object) -> RemoteRunner:
    """Return a runner of two rows; what the connection asked is forgotten."""
    role = rig.remote(server.url, verification="prompt_logprobs").model.roles[0]
    server.recorded.clear()
    return RemoteRunner(role, PROMPTS, **settings)  # type: ignore[arg-type]


def run(runner: RemoteRunner, tokens: list[list[int]], offsets: list[int], num_needed: list[int]) -> torch.Tensor:
    """Run tokens of rows at their offsets; return the log-probabilities `[B, T, V]`."""
    runner.submit(torch.tensor(tokens), offsets, num_needed)
    return runner.gather()[0]


def asked(server: CompletionsServer) -> set[tuple[int, ...]]:
    """Return the prompts of the requests so far, and forget them."""
    found = {tuple(request.body["prompt"]) for request in server.completions}
    server.recorded.clear()
    return found


def test_drafts_that_were_not_kept_are_forgotten(server: CompletionsServer) -> None:
    """Each row reads its prompt and what was kept of its answer, and its logits are the model's behind that."""
    runner = new_runner(server)
    runner.submit_prompts()
    first = runner.gather()[0]
    assert asked(server) == {(5, 6, 7), (8, 9, 10, 11)}
    assert first.shape == (2, 1, 1252)
    run(runner, [[20, 21, 22], [30, 31, 32]], [0, 0], [3, 3])
    assert asked(server) == {(5, 6, 7, 20, 21, 22), (8, 9, 10, 11, 30, 31, 32)}
    # Row 0 kept its first token alone, row 1 all three.
    found = run(runner, [[40, 41], [50, 51]], [1, 3], [2, 2])
    assert asked(server) == {(5, 6, 7, 20, 40, 41), (8, 9, 10, 11, 30, 31, 32, 50, 51)}
    assert torch.allclose(found[0], server.log_probs([5, 6, 7, 20, 40, 41])[-2:], atol=1e-4)
    assert torch.allclose(found[1], server.log_probs([8, 9, 10, 11, 30, 31, 32, 50, 51])[-2:], atol=1e-4)
    assert runner.failures == {}


def test_only_what_counts_is_asked_for(server: CompletionsServer) -> None:
    """A row that has ended is not asked for, nor what stands behind a row's room or behind an end."""
    runner = new_runner(server, eos_token_ids=[2])
    found = run(runner, [[20, 21, 22], [30, 31, 32]], [0, 0], [0, 2])
    assert asked(server) == {(8, 9, 10, 11, 30, 31)}
    assert bool((found[0] == 0).all())
    assert bool((found[1, 2] == 0).all())
    run(runner, [[20, 2, 22], [30, 31, 2]], [0, 0], [3, 3])
    assert asked(server) == {(5, 6, 7, 20), (8, 9, 10, 11, 30, 31)}


def test_rows_leave_the_batch(server: CompletionsServer) -> None:
    """What stays keeps what it has read."""
    runner = new_runner(server)
    run(runner, [[20], [30]], [0, 0], [1, 1])
    runner.select_rows([1])
    asked(server)
    found = run(runner, [[31]], [1], [1])
    assert asked(server) == {(8, 9, 10, 11, 30, 31)}
    assert found.shape == (1, 1, 1252)


def test_a_failed_row_fails_alone(server: CompletionsServer) -> None:
    """The row whose request is refused is named with its error, and has no logits; the other has its own."""
    runner = new_runner(server)
    found = run(runner, [[20], [10**6]], [0, 0], [1, 1])
    assert list(runner.failures) == [1]
    assert isinstance(runner.failures[1], RemoteError)
    assert bool(torch.isfinite(found[0]).any())
    assert bool((found[1] == 0).all())


def test_whoever_has_gone_is_not_waited_for(server: CompletionsServer) -> None:
    """Cancelled, a step comes back with every row failed that has no answer yet."""
    runner = new_runner(server, is_cancelled=lambda: True)
    with server._lock:  # the server cannot answer
        runner.submit_prompts()
        runner.gather()
    assert set(runner.failures) == {0, 1}
