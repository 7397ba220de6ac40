"""Strengths of rows and pairs, and divergences against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from proxytune.errors import OptionError
from proxytune.options import row_alphas
from proxytune.steering import Strengths, cross_entropy, kl_divergence

INF = float("inf")


def draws(seed: int, *shape: int) -> torch.Tensor:
    """Return normal numbers of one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 5


@pytest.mark.parametrize(
    ("alpha", "num_rows", "num_pairs", "rows"),
    [
        (0.5, 2, 1, [(0.5,), (0.5,)]),
        (1, 1, 2, [(1.0, 1.0)]),
        ([0.5, -1], 2, 1, [(0.5,), (-1.0,)]),
        ([0.5, -1], 3, 2, [(0.5, -1.0)] * 3),
        ([[0, 1], [2, 3]], 2, 2, [(0.0, 1.0), (2.0, 3.0)]),
        (torch.tensor([[0.5], [2.0]]), 2, 1, [(0.5,), (2.0,)]),
        (torch.tensor(0.25), 2, 1, [(0.25,), (0.25,)]),
    ],
)
def test_alpha_is_a_number_or_one_per_row_or_per_row_and_pair(
    alpha: Any, num_rows: int, num_pairs: int, rows: list[tuple[float, ...]]
) -> None:
    """Every form gives each row one number per pair; with several pairs a flat list is one per pair."""
    assert row_alphas(alpha, num_rows, num_pairs) == rows


@pytest.mark.parametrize("alpha", [float("nan"), INF, 1e39, True, "1", None, [1.0, 2.0, 3.0], [[1.0, 2.0], [1.0, 2.0]]])
def test_an_alpha_that_is_none_is_refused(alpha: Any) -> None:
    """Not finite, beyond float32, no number, or not one per row and pair: an error that says so."""
    with pytest.raises(OptionError, match="alpha"):
        row_alphas(alpha, 2, 1)


def test_a_pair_is_active_where_any_row_has_a_strength() -> None:
    """Strengths are float32 `[B, P]` on the CPU; a pair of 0 in every row is not active, and has no column to run."""
    strengths = Strengths.of_rows([(0.0, 0.0, 0.1), (0.0, -1.0, 0.2)])
    assert (strengths.values.dtype, strengths.values.device.type) == (torch.float32, "cpu")
    assert strengths.active == (False, True, True)
    expected = torch.tensor([[0.0, 0.1], [-1.0, 0.2]])
    assert torch.equal(strengths.of_active_pairs(torch.device("cpu")), expected)


@pytest.mark.parametrize(
    ("alpha", "values"),
    [
        (0.5, [[0.5, 0.5]]),
        ([0.5, 0.0], [[0.5, 0.0]]),
        (torch.tensor(2), [[2.0, 2.0]]),
        (torch.tensor([0.5, 1.0, 1.5]), [[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]]),
        (torch.tensor([[0.5, 1.0]]), [[0.5, 1.0]]),
    ],
)
def test_the_composites_alpha_is_a_number_one_per_pair_or_a_tensor(alpha: Any, values: list[list[float]]) -> None:
    """A list is one number per pair; a tensor is a number, one per row, or one per row and pair."""
    assert Strengths.of(alpha, 2).values.tolist() == values


@pytest.mark.parametrize("alpha", [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1.0, INF]), [1.0], "much"])
def test_a_composites_alpha_that_does_not_fit_is_refused(alpha: Any) -> None:
    """A wrong width and a number that is not finite are errors, of tensors too."""
    with pytest.raises(OptionError, match="alpha"):
        Strengths.of(alpha, 2)


def test_kl_by_hand() -> None:
    """KL of (1/2, 1/2) and (1/4, 3/4) is ½·ln 2 + ½·ln ⅔; the other way round it differs."""
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_divergence(half + 7, quarter - 3).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(quarter, half).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_cross_entropy_by_hand() -> None:
    """H((1/2, 1/2), (1/4, 3/4)) is −½·ln ¼ − ½·ln ¾, and H(p, q) = H(p, p) + KL(p ‖ q)."""
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert cross_entropy(half, quarter).item() == pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    first, second = draws(0, 5, 30), draws(1, 5, 30)
    total = cross_entropy(first, first) + kl_divergence(first, second)
    assert torch.allclose(cross_entropy(first, second), total, atol=1e-4)


def test_divergences_with_tokens_ruled_out() -> None:
    """What the first rules out counts 0, never NaN; what only the second rules out makes both infinite."""
    first, second = torch.tensor([0.0, 0.0, -INF]), torch.tensor([0.0, 0.0, -INF])
    assert kl_divergence(first, second).item() == 0
    assert cross_entropy(first, second).item() == pytest.approx(math.log(2))
    assert kl_divergence(torch.zeros(3), second).item() == INF
    assert cross_entropy(torch.zeros(3), second).item() == INF
    assert kl_divergence(first, torch.zeros(3)).item() == pytest.approx(math.log(1.5))
