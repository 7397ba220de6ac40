"""The controller against costs and acceptances that are known: it finds the best width and loses nothing by looking."""

import random
from collections.abc import Callable

import pytest

from proxytune.hf.decoding.controller import MAX_WIDTH, Controller
from proxytune.options import Speculation


def simulate(
    controller: Controller, cost: Callable[[int], float], rate: float, *, num_tokens: int, num_rows: int = 1
) -> tuple[float, list[int]]:
    """Return the seconds for so many tokens per row, and the widths, where each draft is right with chance `rate`."""
    draws = random.Random(0)
    seconds, tokens, widths = 0.0, 0.0, []
    while tokens < num_tokens:
        width = controller.width(num_rows)
        agreed = [_kept(draws, width - 1, rate) for _ in range(num_rows)]
        took = cost(width) * draws.uniform(0.95, 1.05)
        controller.observe(width, num_rows, took, agreed)
        seconds += took
        tokens += sum(count + 1 for count in agreed) / num_rows
        widths.append(width)
    return seconds, widths


def _kept(draws: random.Random, num_drafts: int, rate: float) -> int:
    return next((place for place in range(num_drafts) if draws.random() >= rate), num_drafts)


def seventy(width: int) -> float:
    """Return the cost of a cycle where the base is ten times its pair: one base pass, one anti, `width` experts."""
    return 10.0 + 1.0 + 1.0 * width + 0.05 * width


def linear(width: int) -> float:
    """Return the cost where every position costs as much again: a batch at the machine's ridge."""
    return 12.0 * width


def stepped(width: int) -> float:
    """Return the cost where a pass over two positions takes twice as long as over one, but one over eight no more."""
    return 1.17 if width == 1 else 2.0 + 0.12 * width


def test_a_step_in_the_costs_is_seen_through() -> None:
    """Two positions cost twice one, so a narrow trial alone would give up; a wider one finds what eight cost."""
    plain, _ = simulate(Controller("off"), stepped, 0.9, num_tokens=600)
    found, widths = simulate(Controller("auto"), stepped, 0.9, num_tokens=600)
    assert plain / found >= 1.7
    assert sum(widths[-20:]) / 20 >= 6


@pytest.mark.parametrize(("rate", "least"), [(0.9, 2.7), (0.7, 1.8), (0.5, 1.3)])
def test_drafts_that_pay_are_found(rate: float, least: float) -> None:
    """With a large base it drafts, and comes within 12 % of the best fixed width, start included."""
    plain, _ = simulate(Controller("off"), seventy, rate, num_tokens=600)
    found, _ = simulate(Controller("auto"), seventy, rate, num_tokens=600)
    fixed = [simulate(Controller(drafts), seventy, rate, num_tokens=600)[0] for drafts in range(1, MAX_WIDTH)]
    assert found <= 1.12 * min(fixed)
    assert plain / found >= least


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_rows", [1, 32])
def test_drafts_that_lose_are_left(rate: float, num_rows: int) -> None:
    """Where a wider pass costs in proportion, looking costs under 3 % of plain decoding."""
    plain, _ = simulate(Controller("off"), linear, rate, num_tokens=256, num_rows=num_rows)
    found, widths = simulate(Controller("auto"), linear, rate, num_tokens=256, num_rows=num_rows)
    assert found <= plain / 0.97
    assert sum(width > 1 for width in widths) <= 6


def test_drafts_that_are_never_right_are_left() -> None:
    """Even where drafting is cheap."""
    plain, _ = simulate(Controller("off"), seventy, 0.0, num_tokens=256)
    found, _ = simulate(Controller("auto"), seventy, 0.0, num_tokens=256)
    assert found <= plain / 0.97


def test_it_looks_again() -> None:
    """Text that becomes easy to draft is noticed, and text that becomes hard."""
    controller = Controller("auto")
    simulate(controller, seventy, 0.0, num_tokens=100)
    _, easy = simulate(controller, seventy, 0.95, num_tokens=2000)
    assert sum(easy[-20:]) / 20 >= 4
    _, hard = simulate(controller, seventy, 0.0, num_tokens=200)
    assert hard[-20:].count(1) >= 18


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
        controller.observe(width, 4, 100.0, [0] * 4)


def test_expected_tokens_by_hand() -> None:
    """With drafts kept at rate a for ever, E = (1 − a^w) / (1 − a)."""
    controller = Controller("auto")
    for _ in range(400):
        controller.observe(4, 1000, 1.0, [0] * 200 + [1] * 160 + [2] * 128 + [3] * 512)
    assert controller.expected_tokens(3) == pytest.approx(1 + 0.8 + 0.64, abs=1e-3)
    assert controller.expected_tokens(5) == pytest.approx((1 - 0.8**5) / 0.2, abs=1e-3)
