"""The policy against costs and acceptances that are known: it finds how far to draft and loses nothing by looking."""

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from proxytune.hf.decoding.speculation import MAX_DRAFT_TOKENS, DraftConfidence, SpeculationPolicy, StepCosts
from proxytune.options import Speculation

Text = Callable[[random.Random], tuple[float, bool]]
ROLES = SimpleNamespace(can_draft=True)


def simulate(
    policy: SpeculationPolicy,
    cost: Callable[[int], float],
    rate: float | Text,
    *,
    num_tokens: int,
    num_rows: int = 1,
    warmup: float = 1.0,
) -> tuple[float, list[int]]:
    """Return the seconds for so many tokens per row, and the drafts of each step.

    Args:
        policy: Decides.
        cost: Seconds of a step by its number of drafts.
        rate: The chance of each draft to be right, of which the drafter says nothing; or what gives the drafter's
            probability for a draft, and whether it is right.
        num_tokens: To decode.
        num_rows: Of the batch.
        warmup: How many times as long the first two steps of a number of drafts take.
    """
    draws = random.Random(0)
    text = rate if callable(rate) else lambda draws: (0.5, draws.random() < rate)
    seconds, tokens, counts = 0.0, 0.0, []
    while tokens < num_tokens:
        drafts = [[text(draws) for _ in range(MAX_DRAFT_TOKENS)] for _ in range(num_rows)]
        drafting = policy.begin([num_tokens] * num_rows, ROLES)
        count = drafting.max_tokens
        if drafting.is_open:
            count = 0
            while count < drafting.max_tokens and policy.should_continue(
                drafting, *drafted([row[count][0] for row in drafts])
            ):
                count += 1
        agreed = [kept([is_right for _, is_right in row[:count]]) for row in drafts]
        is_warmup = warmup > 1 and counts.count(count) < 2
        took = cost(count) * draws.uniform(0.95, 1.05) * (warmup if is_warmup else 1.0)
        policy.observe(drafting, count, agreed, took, is_warmup=is_warmup)
        seconds += took
        tokens += sum(count + 1 for count in agreed) / num_rows
        counts.append(count)
    return seconds, counts


def drafted(probs: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits `[B, 1, 2]` that give token 0 these probabilities, and that token."""
    table = torch.tensor(probs)
    return torch.stack([table, 1 - table], dim=-1).log()[:, None], torch.zeros(len(probs), 1, dtype=torch.long)


def kept(drafts: list[bool]) -> int:
    """Return how many drafts come before the first wrong one."""
    return drafts.index(False) if False in drafts else len(drafts)


def telling(draws: random.Random) -> tuple[float, bool]:
    """Give text of which a quarter is hard, where the drafter says so."""
    is_hard = draws.random() < 0.25
    return (0.3, draws.random() < 0.2) if is_hard else (0.97, draws.random() < 0.97)


def seventy(num_drafts: int) -> float:
    """Return the cost of a step where the base is ten times its pair."""
    return 11.0 + 1.05 * (num_drafts + 1)


def linear(num_drafts: int) -> float:
    """Return the cost where every position costs as much again: a batch at the machine's ridge."""
    return 12.0 * (num_drafts + 1)


def stepped(num_drafts: int) -> float:
    """Return the cost where two positions take twice as long as one, but eight no more."""
    return 1.17 if num_drafts == 0 else 2.12 + 0.12 * num_drafts


def test_a_step_in_the_costs_is_seen_through() -> None:
    """Two positions cost twice one, so a narrow trial alone would give up; a wider one finds what eight cost."""
    plain, _ = simulate(SpeculationPolicy("off"), stepped, 0.9, num_tokens=600)
    found, counts = simulate(SpeculationPolicy("auto"), stepped, 0.9, num_tokens=600)
    assert plain / found >= 1.7
    assert sum(counts[-20:]) / 20 >= 5


@pytest.mark.parametrize(("rate", "least"), [(0.9, 2.7), (0.7, 1.8), (0.5, 1.3)])
def test_drafts_that_pay_are_found(rate: float, least: float) -> None:
    """With a large base it drafts, and comes within 12 % of the best fixed number up to 7, start included."""
    plain, _ = simulate(SpeculationPolicy("off"), seventy, rate, num_tokens=600)
    found, _ = simulate(SpeculationPolicy("auto"), seventy, rate, num_tokens=600)
    fixed = [simulate(SpeculationPolicy(drafts), seventy, rate, num_tokens=600)[0] for drafts in range(1, 8)]
    assert found <= 1.12 * min(fixed)
    assert plain / found >= least


def test_a_drafter_that_knows_when_it_errs_is_believed() -> None:
    """Ending drafts at hard tokens beats every fixed number by 15 %, though nobody said what its probabilities mean."""
    found, counts = simulate(SpeculationPolicy("auto"), seventy, telling, num_tokens=1500)
    fixed = [simulate(SpeculationPolicy(drafts), seventy, telling, num_tokens=1500)[0] for drafts in range(1, 12)]
    assert found * 1.15 <= min(fixed)
    assert len(set(counts[-100:])) >= 6


def test_warmup_steps_teach_no_costs() -> None:
    """Where the first steps of a number of drafts take five times as long, drafting is found all the same."""
    plain, _ = simulate(SpeculationPolicy("off"), seventy, 0.8, num_tokens=1000)
    found, _ = simulate(SpeculationPolicy("auto"), seventy, 0.8, num_tokens=1000, warmup=5.0)
    assert plain / found >= 1.55


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_rows", [1, 32])
def test_drafts_that_lose_are_left(rate: float, num_rows: int) -> None:
    """Where a wider forward costs in proportion, looking costs under 3 % of plain decoding."""
    plain, _ = simulate(SpeculationPolicy("off"), linear, rate, num_tokens=512, num_rows=num_rows)
    found, counts = simulate(SpeculationPolicy("auto"), linear, rate, num_tokens=512, num_rows=num_rows)
    assert found <= plain / 0.97
    assert sum(count > 0 for count in counts) <= 6


def test_drafts_that_are_never_right_are_left() -> None:
    """Even where drafting is cheap."""
    plain, _ = simulate(SpeculationPolicy("off"), seventy, 0.0, num_tokens=256)
    found, _ = simulate(SpeculationPolicy("auto"), seventy, 0.0, num_tokens=256)
    assert found <= plain / 0.97


def test_it_looks_again() -> None:
    """Text that becomes easy to draft is noticed, and text that becomes hard."""
    policy = SpeculationPolicy("auto")
    simulate(policy, seventy, 0.0, num_tokens=100)
    _, easy = simulate(policy, seventy, 0.95, num_tokens=2000)
    assert sum(easy[-20:]) / 20 >= 3
    plain, _ = simulate(SpeculationPolicy("off"), seventy, 0.0, num_tokens=400)
    found, hard = simulate(policy, seventy, 0.0, num_tokens=400)
    assert hard[-20:].count(0) >= 12
    assert found <= 1.15 * plain


def test_sizes_of_batches_are_apart() -> None:
    """What a wide forward costs 32 rows says nothing about one row."""
    policy = SpeculationPolicy("auto")
    simulate(policy, linear, 0.9, num_tokens=100, num_rows=32)
    _, counts = simulate(policy, seventy, 0.9, num_tokens=300, num_rows=1)
    assert sum(counts[-10:]) / 10 >= 3


@pytest.mark.parametrize(("speculation", "count"), [("off", 0), (1, 1), (5, 5)])
def test_fixed(speculation: Speculation, count: int) -> None:
    """A number of drafts is kept to whatever is observed, up to what rows can take."""
    policy = SpeculationPolicy(speculation)
    for _ in range(50):
        drafting = policy.begin([9, 0, 4], ROLES)
        assert (drafting.max_tokens, drafting.is_open) == (count, False)
        policy.observe(drafting, count, [0, 0], 100.0)
    assert policy.begin([3, 0], ROLES).max_tokens == min(count, 2)


def test_costs_by_hand() -> None:
    """Steps of 1, 3 and 5 drafts that take 2 + 0.5 k seconds; with one width alone the line starts at a plain step."""
    costs = StepCosts()
    for count in (0, 0, 3):
        costs.add(count, 1.5 if count == 0 else 2 + 0.5 * count, 1, 1)
    assert costs.seconds(6) == pytest.approx(1.5 + 2 * 2.0)
    for count in (1, 5):
        costs.add(count, 2 + 0.5 * count, 1, 1)
    assert [costs.seconds(count) for count in (0, 1, 6)] == pytest.approx([1.5, 2.5, 5.0])


def test_confidence_is_calibrated_by_what_came_true() -> None:
    """Drafts at 0.99 that are right half of the time are worth 0.5, others still the prior."""
    confidence = DraftConfidence()
    for step in range(200):
        confidence.learn(1, [step % 2], [[0.99]])
    assert confidence.rate(0.99) == pytest.approx(0.5, abs=0.05)
    assert confidence.rate(0.3) == pytest.approx(0.7)
