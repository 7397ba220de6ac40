"""The loop over roles of twenty lines: a language in which the next token is the sum of the last two."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from proxytune.completion import Request
from proxytune.hf.decoding.batch_state import BatchState
from proxytune.hf.decoding.loop import DecodeLoop
from proxytune.hf.decoding.speculation import SpeculationPolicy
from proxytune.options import GenerationOptions
from proxytune.sampling import Sampler
from tests.hf.decoding.rigs import Scripted

VOCAB_SIZE = 97


class FakeRoles:
    """Roles that keep each row's text and like best the sum of its last two tokens; the drafter errs at multiples."""

    can_draft = expert_drafts = True
    failures: ClassVar[dict[int, Any]] = {}
    masses = None

    def __init__(self, prompts: Sequence[Sequence[int]], errs_at: int) -> None:
        self.rows, self.starts, self.errs_at = [list(row) for row in prompts], [len(row) for row in prompts], errs_at
        self.num_forwards, self.kept = 0, list(range(len(prompts)))

    def logits(self, token_ids: Tensor, offsets: Sequence[int], errs_at: int = 0) -> Tensor:
        """Return one-hot logits `[B, T, V]` after each token, and forget what a row had from its offset on."""
        table = torch.zeros(*token_ids.shape, VOCAB_SIZE)
        for row, tokens in enumerate(token_ids.tolist()):
            del self.rows[row][self.starts[row] + offsets[row] :]
            for position, token in enumerate(tokens):
                self.rows[row].append(token)
                best = sum(self.rows[row][-2:]) % VOCAB_SIZE
                is_wrong = errs_at and best % errs_at == 0
                table[row, position, (best + 1) % VOCAB_SIZE if is_wrong else best] = 1.0
        self.peaks = table.amax(-1)
        return table

    def prefill(self) -> Tensor:
        """Run the prompts."""
        last = torch.tensor([row.pop() for row in self.rows])[:, None]
        self.starts = [start - 1 for start in self.starts]
        table = self.logits(last, [0] * len(last))
        self.starts = [start + 1 for start in self.starts]
        return table

    def submit(self, token_ids: Tensor, offsets: Sequence[int], num_needed: Sequence[int]) -> None:
        """Nothing to announce."""

    def draft_logits(self, token_ids: Tensor, offsets: Sequence[int]) -> Tensor:
        """Run the drafter."""
        return self.logits(token_ids, offsets, self.errs_at)

    def forward(self, token_ids: Tensor, offsets: Sequence[int], expert_logits: Tensor | None = None) -> Tensor:
        """Run the roles."""
        self.num_forwards += 1
        return self.logits(token_ids, offsets)

    def pop_warmup(self) -> bool:
        """Nothing is set up."""
        return False

    def require_finite(self, row: int, position: int, request_index: int) -> None:
        """Say which row is broken."""
        raise FloatingPointError(f"request {request_index}, position {position}")

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self.rows, self.starts = [self.rows[row] for row in rows], [self.starts[row] for row in rows]
        self.kept = [self.kept[row] for row in rows]


def expected(prompt: Sequence[int], count: int, eos: int | None = None) -> list[int]:
    """Return the language's answer by definition."""
    text = list(prompt)
    for _ in range(count):
        text.append(sum(text[-2:]) % VOCAB_SIZE)
        if text[-1] == eos:
            break
    return text[len(prompt) :]


PROMPTS = [[3, 5, 8], [1, 1], [40, 2, 9, 11, 4], [7, 90]]


def new_loop(
    policy: SpeculationPolicy, limits: Sequence[int], *, errs_at: int = 0, eos: Sequence[int] = ()
) -> tuple[DecodeLoop, FakeRoles]:
    """Return a loop over fake roles, and these."""
    roles, device = FakeRoles(PROMPTS, errs_at), torch.device("cpu")
    sampler = Sampler(
        GenerationOptions(),
        [0] * 4,
        PROMPTS,
        vocab_size=VOCAB_SIZE,
        max_positions=policy.max_draft_tokens + 1,
        device=device,
    )
    state = BatchState(limits, [row[-1] for row in PROMPTS], eos_token_ids=eos)
    requests = [
        Request(role_ids=(tuple(row),), alphas=(), max_new_tokens=limit, index=index)
        for index, (row, limit) in enumerate(zip(PROMPTS, limits, strict=True))
    ]
    return DecodeLoop(roles, sampler, state, policy, requests, device), roles


@pytest.mark.parametrize("speculation", ["off", "auto", 1, 3, 6])
@pytest.mark.parametrize("errs_at", [0, 1, 3])
def test_ragged_rows_with_limits_of_their_own(speculation: Any, errs_at: int) -> None:
    """Drafts all right, all wrong, or wrong now and then: the tokens are the language's, as many as each row may."""
    limits = [1, 30, 7, 19]
    loop, _ = new_loop(SpeculationPolicy(speculation), limits, errs_at=errs_at)
    loop.run()
    assert loop.state.token_ids == [expected(*row) for row in zip(PROMPTS, limits, strict=True)]


def test_right_drafts_save_forwards() -> None:
    """Four tokens a forward where three drafts are right: 1 + 8 · 4 = 33."""
    loop, roles = new_loop(SpeculationPolicy(3), [33] * 4)
    loop.run()
    assert roles.num_forwards == 8
    assert loop.counters.accepted == [32, 32, 32]


@pytest.mark.parametrize("nums_draft_tokens", [[0], [0, 4, 1], [5]])
def test_rows_end_with_their_end_token(nums_draft_tokens: list[int]) -> None:
    """Each token of the first row's answer as the end: the row stops with it, wherever in a step it comes."""
    answer = expected(PROMPTS[0], 20)
    for index, eos in enumerate(answer):
        if eos in answer[:index]:
            continue
        loop, _ = new_loop(Scripted(nums_draft_tokens), [20] * 4, eos=[eos])
        loop.run()
        assert loop.state.token_ids == [expected(row, 20, eos) for row in PROMPTS]


def test_finished_rows_leave_the_batch() -> None:
    """Three of four rows finish early: the roles run the last alone, and it ends as it would have."""
    loop, roles = new_loop(SpeculationPolicy(2), [2, 60, 3, 4], errs_at=5)
    loop.run()
    assert roles.kept == [1]
    assert loop.state.token_ids[1] == expected(PROMPTS[1], 60)


def test_a_cancelled_loop_stops_between_steps() -> None:
    """It keeps what it has."""
    loop, _ = new_loop(SpeculationPolicy("off"), [50] * 4)
    loop.is_cancelled = lambda: len(loop.state.token_ids[0]) >= 10
    loop.run()
    assert [len(row) for row in loop.state.token_ids] == [10] * 4


def test_broken_logits_name_request_and_position() -> None:
    """NaN at a token that counts raises for its request; at one that does not count it passes."""
    loop, roles = new_loop(SpeculationPolicy("off"), [9] * 4)
    forward = roles.forward

    def broken(*args: Any) -> Tensor:
        logits = forward(*args)
        roles.peaks[2, 0] = torch.nan
        return logits

    roles.forward = broken  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="request 2, position 0"):
        loop.run()
