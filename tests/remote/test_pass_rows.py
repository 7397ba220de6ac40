"""The pass of a remote base by itself: what rows have read, what they ask for, and which of them fail."""

from collections.abc import Iterator

import pytest
import torch

from proxytune.errors import RemoteError
from proxytune.hf.decoding.passes import Prompts
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.decoding.remote_pass import RemotePass
from tests.remote import rig
from tests.remote.completions_server import CompletionsServer

PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    """A server that gives the whole vocabulary."""
    with rig.server() as found:
        yield found


def new_pass(server: CompletionsServer, **settings: object) -> RemotePass:
    """Return a pass over two rows; what the connection asked is forgotten."""
    role = rig.remote(server.url, verification="prompt_logprobs").model.roles[0]
    server.recorded.clear()
    return RemotePass(role, Prompts(PROMPTS), **settings)  # type: ignore[arg-type]


def read(member: RemotePass, tokens: list[list[int]], farthest: list[int], wanted: list[int]) -> torch.Tensor:
    """Let rows read tokens at their places; return the log-probabilities `[B, T, V]`."""
    member.begin(torch.tensor(tokens), Reading(torch.tensor(farthest), farthest, wanted))
    return member.gather()[0]


def asked(server: CompletionsServer) -> set[tuple[int, ...]]:
    """Return the prompts of the requests so far, and forget them."""
    found = {tuple(request.body["prompt"]) for request in server.completions}
    server.recorded.clear()
    return found


def test_drafts_that_were_not_kept_are_forgotten(server: CompletionsServer) -> None:
    """Each row reads its prompt and what was kept of its answer, and its logits are the model's behind that."""
    member = new_pass(server)
    member.begin_prompts()
    first = member.gather()[0]
    assert asked(server) == {(5, 6, 7), (8, 9, 10, 11)}
    assert first.shape == (2, 1, 1252)
    read(member, [[20, 21, 22], [30, 31, 32]], [0, 0], [3, 3])
    assert asked(server) == {(5, 6, 7, 20, 21, 22), (8, 9, 10, 11, 30, 31, 32)}
    # Row 0 kept its first token alone, row 1 all three.
    found = read(member, [[40, 41], [50, 51]], [1, 3], [2, 2])
    assert asked(server) == {(5, 6, 7, 20, 40, 41), (8, 9, 10, 11, 30, 31, 32, 50, 51)}
    assert torch.allclose(found[0], server.log_probs([5, 6, 7, 20, 40, 41])[-2:], atol=1e-4)
    assert torch.allclose(found[1], server.log_probs([8, 9, 10, 11, 30, 31, 32, 50, 51])[-2:], atol=1e-4)
    assert member.failures == {}


def test_only_what_counts_is_asked_for(server: CompletionsServer) -> None:
    """A row that has ended is not asked for, nor what stands behind a row's room or behind an end."""
    member = new_pass(server, ends=[2])
    found = read(member, [[20, 21, 22], [30, 31, 32]], [0, 0], [0, 2])
    assert asked(server) == {(8, 9, 10, 11, 30, 31)}
    assert bool((found[0] == 0).all())
    assert bool((found[1, 2] == 0).all())
    read(member, [[20, 2, 22], [30, 31, 2]], [0, 0], [3, 3])
    assert asked(server) == {(5, 6, 7, 20), (8, 9, 10, 11, 30, 31)}


def test_rows_leave_the_batch(server: CompletionsServer) -> None:
    """What stays keeps what it has read."""
    member = new_pass(server)
    read(member, [[20], [30]], [0, 0], [1, 1])
    member.keep([1])
    asked(server)
    found = read(member, [[31]], [1], [1])
    assert asked(server) == {(8, 9, 10, 11, 30, 31)}
    assert found.shape == (1, 1, 1252)


def test_a_failed_row_fails_alone(server: CompletionsServer) -> None:
    """The row whose request is refused is named with its error, and has no logits; the other has its own."""
    member = new_pass(server)
    found = read(member, [[20], [10**6]], [0, 0], [1, 1])
    assert list(member.failures) == [1]
    assert isinstance(member.failures[1], RemoteError)
    assert bool(torch.isfinite(found[0]).any())
    assert bool((found[1] == 0).all())


def test_whoever_has_gone_is_not_waited_for(server: CompletionsServer) -> None:
    """Cancelled, a step comes back with every row failed that has no answer yet."""
    member = new_pass(server, is_cancelled=lambda: True)
    with server._lock:  # the server cannot answer
        member.begin_prompts()
        member.gather()
    assert set(member.failures) == {0, 1}


def test_no_graph_can_wait_for_a_server(server: CompletionsServer) -> None:
    """Slots cannot be pinned."""
    with pytest.raises(RuntimeError, match="no slots"):
        new_pass(server).pin(8)
