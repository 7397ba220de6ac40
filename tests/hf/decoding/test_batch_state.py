"""The rows of a batch: which tokens of a step count, and what ends a row."""

import pytest

from proxytune.hf.decoding.batch_state import BatchState, accepted, is_broken


@pytest.mark.parametrize(
    ("tokens", "drafts", "limit", "expected"),
    [
        ([7], [], 9, (0, 1, False)),
        ([7, 8, 9], [7, 8], 9, (2, 3, False)),
        ([7, 8, 9], [7, 5], 9, (1, 2, False)),
        ([7, 8, 9], [5, 8], 9, (0, 1, False)),
        ([7, 8, 9], [7, 8], 2, (2, 2, False)),
        ([2, 8, 9], [2, 8], 9, (2, 1, True)),
        ([7, 2, 9], [7, 2], 1, (2, 1, False)),
        ([7, 8, 2], [7, 8], 3, (2, 3, True)),
    ],
)
def test_accepted_by_hand(tokens: list[int], drafts: list[int], limit: int, expected: tuple[int, int, bool]) -> None:
    """Agreeing drafts and one token more, up to the limit and the first end token, 2."""
    assert accepted(tokens, drafts, limit, {2}) == expected


def test_a_row_finishes_at_its_own_limit() -> None:
    """Limits are per request; a finished row takes no more tokens and keeps its last one."""
    state = BatchState([2, 5], [0, 0])
    state.accept(0, [10, 11, 12], [10, 11])
    state.accept(1, [20, 21, 22], [20, 99])
    assert state.token_ids == [[10, 11], [20, 21]]
    assert state.is_finished == [True, False]
    assert state.remaining_tokens == [0, 3]
    assert (state.offsets, state.last_tokens, state.counts) == ([1, 1], [11, 21], [2, 2])


def test_rows_that_stay_keep_their_requests() -> None:
    """After rows leave, tokens go to the request that a row had from the start."""
    state = BatchState([9, 9, 9], [0, 0, 0])
    for row in range(3):
        state.accept(row, [row], [])
    state.select_rows([2, 0])
    state.accept(0, [5], [])
    assert state.token_ids == [[0], [1], [2, 5]]
    assert state.alive == [2, 0]


def test_broken_peaks() -> None:
    """A sum of largest logits is broken where it is NaN or infinite."""
    assert [is_broken(peak) for peak in (3.0, float("nan"), float("inf"), float("-inf"))] == [False, True, True, True]
