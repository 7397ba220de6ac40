"""The controller against costs and acceptances that are known: it finds the best width and loses nothing by looking."""

import random
from collections.abc import Callable

import pytest

from proxytune.hf.decoding.controller import MAX_WIDTH, Controller, Plan
from proxytune.hf.decoding.prospect import Prospect
from proxytune.options import Speculation

Text = Callable[[random.Random], tuple[float, bool]]


def simulate(
    controller: Controller,
    cost: Callable[[int], float],
    rate: float | Text,
    *,
    num_tokens: int,
    num_rows: int = 1,
    is_judged: bool = True,
    is_free: bool = True,
    cold: float = 1.0,
) -> tuple[float, list[int]]:
    """Return the seconds for so many tokens per row, and the widths.

    Args:
        controller: Decides.
        cost: Seconds of a cycle by width.
        rate: The chance of each draft to be right, of which the drafter says nothing; or what gives the drafter's
            probability for a draft, and whether it is right.
        num_tokens: To decode.
        num_rows: Of the batch.
        is_judged: Whether the controller sees drafts as they come, or says the width beforehand.
        is_free: Whether it hears of the first draft for nothing.
        cold: How many times as long the first two cycles of a width take.
    """
    draws = random.Random(0)
    text = rate if callable(rate) else lambda draws: (0.5, draws.random() < rate)
    seconds, tokens, widths = 0.0, 0.0, []
    while tokens < num_tokens:
        drafts = [[text(draws) for _ in range(MAX_WIDTH)] for _ in range(num_rows)]
        plan = controller.plan(num_rows, is_free=is_free) if is_judged else Plan(controller.width(num_rows))
        width, sureness = plan.width, None
        if is_judged and controller.is_automatic:
            prospect = Prospect(controller, [num_tokens] * num_rows, is_open=not plan.is_fixed)
            width = 1
            while width < plan.width and prospect.admits([row[width - 1][0] for row in drafts]):
                width += 1
            sureness = [prospect.of_row(row) for row in range(num_rows)]
        agreed = [_kept([is_right for _, is_right in row[: width - 1]]) for row in drafts]
        is_cold = cold > 1 and widths.count(width) < 2
        took = cost(width) * draws.uniform(0.95, 1.05) * (cold if is_cold else 1.0)
        controller.observe(width, num_rows, took, agreed, sureness=sureness, is_cold=is_cold)
        seconds += took
        tokens += sum(count + 1 for count in agreed) / num_rows
        widths.append(width)
    return seconds, widths


def _kept(drafts: list[bool]) -> int:
    return drafts.index(False) if False in drafts else len(drafts)


def telling(draws: random.Random) -> tuple[float, bool]:
    """Give text of which a quarter is hard, where the drafter says so."""
    is_hard = draws.random() < 0.25
    return (0.3, draws.random() < 0.2) if is_hard else (0.97, draws.random() < 0.97)


def seventy(width: int) -> float:
    """Return the cost of a cycle where the base is ten times its pair: one base pass, one anti, `width` experts."""
    return 10.0 + 1.0 + 1.0 * width + 0.05 * width


def linear(width: int) -> float:
    """Return the cost where every position costs as much again: a batch at the machine's ridge."""
    return 12.0 * width


def stepped(width: int) -> float:
    """Return the cost where a pass over two positions takes twice as long as over one, but one over eight no more."""
    return 1.17 if width == 1 else 2.0 + 0.12 * width


@pytest.mark.parametrize("is_judged", [True, False])
def test_a_step_in_the_costs_is_seen_through(is_judged: bool) -> None:
    """Two positions cost twice one, so a narrow trial alone would give up; a wider one finds what eight cost."""
    plain, _ = simulate(Controller("off"), stepped, 0.9, num_tokens=600)
    found, widths = simulate(Controller("auto"), stepped, 0.9, num_tokens=600, is_judged=is_judged)
    assert plain / found >= 1.7
    assert sum(widths[-20:]) / 20 >= 6


@pytest.mark.parametrize(("rate", "least"), [(0.9, 2.7), (0.7, 1.8), (0.5, 1.3)])
@pytest.mark.parametrize("is_judged", [True, False])
def test_drafts_that_pay_are_found(is_judged: bool, rate: float, least: float) -> None:
    """With a large base it drafts, and comes within 12 % of the best fixed width up to 8, start included."""
    plain, _ = simulate(Controller("off"), seventy, rate, num_tokens=600)
    found, _ = simulate(Controller("auto"), seventy, rate, num_tokens=600, is_judged=is_judged)
    fixed = [simulate(Controller(drafts), seventy, rate, num_tokens=600)[0] for drafts in range(1, 8)]
    assert found <= 1.12 * min(fixed)
    assert plain / found >= least


def test_a_drafter_that_knows_when_it_errs_is_believed() -> None:
    """Ending drafts at hard tokens beats every fixed width by 15 %, though nobody said what its probabilities mean."""
    found, widths = simulate(Controller("auto"), seventy, telling, num_tokens=1500)
    fixed = [simulate(Controller(drafts), seventy, telling, num_tokens=1500)[0] for drafts in range(1, MAX_WIDTH)]
    assert found * 1.15 <= min(fixed)
    assert len(set(widths[-100:])) >= 6


def test_cold_cycles_do_not_count() -> None:
    """Where the first cycles of a width take five times as long, drafting is found all the same."""
    plain, _ = simulate(Controller("off"), seventy, 0.8, num_tokens=1000)
    found, _ = simulate(Controller("auto"), seventy, 0.8, num_tokens=1000, cold=5.0)
    assert plain / found >= 1.6


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_rows", [1, 32])
@pytest.mark.parametrize("is_judged", [True, False])
def test_drafts_that_lose_are_left(is_judged: bool, rate: float, num_rows: int) -> None:
    """Where a wider pass costs in proportion, looking costs under 3 % of plain decoding."""
    plain, _ = simulate(Controller("off"), linear, rate, num_tokens=256, num_rows=num_rows)
    found, widths = simulate(
        Controller("auto"), linear, rate, num_tokens=256, num_rows=num_rows, is_judged=is_judged, is_free=False
    )
    assert found <= plain / 0.97
    assert sum(width > 1 for width in widths) <= 6


@pytest.mark.parametrize("is_judged", [True, False])
def test_drafts_that_are_never_right_are_left(is_judged: bool) -> None:
    """Even where drafting is cheap."""
    plain, _ = simulate(Controller("off"), seventy, 0.0, num_tokens=256)
    found, _ = simulate(Controller("auto"), seventy, 0.0, num_tokens=256, is_judged=is_judged)
    assert found <= plain / 0.97


@pytest.mark.parametrize("is_judged", [True, False])
def test_it_looks_again(is_judged: bool) -> None:
    """Text that becomes easy to draft is noticed, and text that becomes hard."""
    controller = Controller("auto")
    simulate(controller, seventy, 0.0, num_tokens=100, is_judged=is_judged)
    _, easy = simulate(controller, seventy, 0.95, num_tokens=2000, is_judged=is_judged)
    assert sum(easy[-20:]) / 20 >= 4
    plain, _ = simulate(Controller("off"), seventy, 0.0, num_tokens=400)
    found, hard = simulate(controller, seventy, 0.0, num_tokens=400, is_judged=is_judged)
    assert hard[-20:].count(1) >= 12
    assert found <= 1.15 * plain


def test_sizes_of_batches_are_apart() -> None:
    """What a wide pass costs 32 rows says nothing about one row."""
    controller = Controller("auto")
    simulate(controller, linear, 0.9, num_tokens=100, num_rows=32)
    _, widths = simulate(controller, seventy, 0.9, num_tokens=300, num_rows=1)
    assert sum(widths[-10:]) / 10 >= 4


@pytest.mark.parametrize(("speculation", "width"), [("off", 1), (1, 2), (5, 6)])
def test_fixed(speculation: Speculation, width: int) -> None:
    """A number of drafts is kept to whatever is observed."""
    controller = Controller(speculation)
    for _ in range(50):
        assert controller.width(4) == width
        assert controller.plan(4, is_free=True) == Plan(width)
        controller.observe(width, 4, 100.0, [0] * 4)


def test_expected_tokens_by_hand() -> None:
    """With drafts kept at rate a for ever, E = (1 − a^w) / (1 − a)."""
    controller = Controller("auto")
    for _ in range(400):
        controller.observe(4, 1000, 1.0, [0] * 200 + [1] * 160 + [2] * 128 + [3] * 512)
    assert controller.expected_tokens(3) == pytest.approx(1 + 0.8 + 0.64, abs=1e-3)
    assert controller.expected_tokens(5) == pytest.approx((1 - 0.8**5) / 0.2, abs=1e-3)
