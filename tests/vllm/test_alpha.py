"""α by row of the batch, without an engine: which token has which, and where a CUDA graph would read it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from proxytune.strength import Schedule
from proxytune.vllm.alpha import AlphaRows
from proxytune.vllm.plan import Plan, RolePlan
from proxytune.vllm.role_prompts import RolePrompts

PROMPTS = RolePrompts(((1, 5), (1, 6, 7), (2,)))


def rows_of(num_rows: int = 4) -> AlphaRows:
    """Return the processor of an engine for so many requests at once, whose configured α is 0.5."""
    roles = tuple(RolePlan(name=name, model=name) for name in ("base", "expert", "anti"))
    plan = Plan(roles=roles, pairs=((1, 2),), alphas=(0.5,))
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(**plan.overrides())),
        scheduler_config=SimpleNamespace(max_num_seqs=num_rows),
        instance_id="of-the-alpha-tests",
    )
    return AlphaRows(config, torch.device("cpu"), False)


def added(row: int, alpha: float | None = None, **extra: Any) -> tuple[int, SamplingParams, list[int], list[int]]:
    """Return a new request of a row."""
    arguments = extra if alpha is None else {"alpha": alpha, **extra}
    return row, SamplingParams(extra_args=arguments or None), [1, 5], []


def update(**changes: Any) -> BatchUpdate:
    """Return a change of the batch."""
    return BatchUpdate(**{"batch_size": 4, "added": [], "removed": [], "moved": [], **changes})


def test_tokens_have_the_alpha_of_their_request() -> None:
    """By hand: three requests of 2, 1 and 3 tokens, two of padding, and the configured α where none was asked for."""
    rows = rows_of()
    rows.update_state(update(added=[added(0, 2.0), added(1), added(2, -1.0)]))
    rows.begin_step(torch.tensor([0, 2, 3, 6]))
    assert rows.per_token(torch.arange(8), is_dummy=False)[:6, 0].tolist() == [2.0, 2.0, 0.5, -1.0, -1.0, -1.0]
    assert rows.per_token(torch.arange(3), is_dummy=True)[:, 0].tolist() == [0.5] * 3


def test_strengths_follow_the_rules_schedule() -> None:
    """Per token of a batch with a prompt of 3 read in part and one of 2 with an answer: by hand."""
    rows = rows_of()
    new = [(0, SamplingParams(extra_args={"alpha": 1.0}), [1, 5, 6], []), (1, SamplingParams(), [1, 5], [])]
    rows.update_state(update(added=new))
    rows.begin_step(torch.tensor([0, 2, 5]))
    positions = torch.tensor([1, 2, 3, 4, 5, 0])
    # Row 0: prompt, then position 0; row 1: positions 2, 3, 4.
    found = rows.per_token(positions, Schedule.of("linear:4"), is_dummy=False)
    assert found[:5, 0].tolist() == [1.0, 1.0, 0.25, 0.125, 0.0]
    assert rows.per_token(positions, is_dummy=False)[:, 0].tolist() == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_rows_that_move_take_alpha_and_prompts_along() -> None:
    """A swap, a move into an empty row, and a row whose request has ended."""
    rows = rows_of()
    starts, lengths = torch.tensor([0, 2, 4]), torch.tensor([2, 2])
    given = SamplingParams(extra_args={"alpha": 3.0, **PROMPTS.arguments()})
    rows.update_state(update(added=[(0, given, PROMPTS.sequence(), []), added(1, 2.0), added(2, 1.0)]))
    rows.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    rows.begin_step(torch.tensor([0, 1, 2, 3]))
    assert rows.per_token(torch.arange(3), is_dummy=False)[:, 0].tolist() == [2.0, 3.0, 1.0]
    step = rows.role_step(2, starts, lengths, 4)
    assert step is not None
    assert step.starts.tolist() == [0, 2, 2]
    rows.update_state(update(removed=[0], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    rows.begin_step(torch.tensor([0, 1]))
    assert rows.per_token(torch.arange(1), is_dummy=False)[:, 0].tolist() == [3.0]
    rows.update_state(update(removed=[0]))
    assert rows.role_step(2, starts, lengths, 4) is None


@pytest.mark.parametrize("made_up", [PROMPTS.arguments(), {"proxytune_prompt_0": [1, 5]}])
def test_prompts_that_do_not_fit_the_sequence_are_left_alone(made_up: dict[str, Any]) -> None:
    """A client of vLLM's own server can write them; the request is then one whose roles read the sequence."""
    rows = rows_of()
    rows.update_state(update(added=[added(0, **made_up)]))
    assert rows.role_step(1, torch.tensor([0, 2]), torch.tensor([2]), 2) is None


def test_a_recorded_step_reads_the_alpha_of_its_replay() -> None:
    """The operations of one step, recorded once as a CUDA graph would, give another batch's α when they run again."""
    rows, starts = rows_of(), torch.tensor([0, 2, 3])
    rows.update_state(update(added=[added(0, 2.0), added(1, 4.0)]))
    rows.begin_step(starts)
    recorded = make_fx(lambda: rows.per_token(torch.arange(3), is_dummy=False))()
    assert recorded()[:, 0].tolist() == [2.0, 2.0, 4.0]
    rows.update_state(update(added=[added(0, -1.0), added(1, 7.0)]))
    starts.copy_(torch.tensor([0, 1, 3]))
    rows.begin_step(starts)
    assert recorded()[:, 0].tolist() == [-1.0, 7.0, 7.0]
