"""Confidence intervals, and the table over seeds."""

from __future__ import annotations

import pytest
from scipy import stats

from neft.ablation.cells import CellResult
from neft.ablation.grid import Cell, cells
from neft.ablation.statistics import Interval, t_interval, t_quantile_95
from neft.ablation.summary import summarize, summary_table
from neft.errors import InputError


def test_quantiles_are_students():
    """They equal scipy's to 1e-5 for 1 to 200 degrees of freedom and at 100,000."""
    for degrees in [*range(1, 201), 100_000]:
        assert t_quantile_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-5)


def test_an_interval_by_hand():
    """1, 2, 3, 4: mean 2.5, variance 5/3, half width 3.1824 · √(5/12)."""
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.half_width == pytest.approx(3.182446 * (5 / 12) ** 0.5)
    assert t_interval([7.0]) == Interval(7.0, None, 1)
    assert t_interval([2.0, 2.0]).half_width == 0


def _result(alpha, seed, eval_loss, failure=None):
    metrics = {} if failure else {"train_loss": alpha + seed, "eval_loss": eval_loss}
    return CellResult(Cell(alpha, "uniform" if alpha else None, seed), metrics, failure)


def test_the_change_is_paired_by_seed():
    """Losses of 10, 20 against 9, 19 differ by exactly 1 each, whatever their own spread."""
    plain, noised = summarize([_result(0, 0, 10.0), _result(0, 1, 20.0), _result(5, 0, 9.0), _result(5, 1, 19.0)])
    assert "eval_loss_change" not in plain.metrics
    assert noised.metrics["eval_loss_change"] == Interval(-1.0, 0.0, 2)
    assert noised.metrics["eval_loss"].half_width == pytest.approx(12.706205 * 5)


def test_runs_that_diverged_are_counted_and_left_out():
    """Two seeds of three have figures; the table says so."""
    results = [_result(5, 0, 1.0), _result(5, 1, 3.0), _result(5, 2, 0.0, failure="the loss is inf")]
    (summary,) = summarize(results)
    assert (summary.num_seeds, summary.num_failed, summary.metrics["eval_loss"].mean) == (2, 1, 2.0)
    assert "2 (+1 diverged)" in summary_table([summary])


def test_a_setting_without_figures_is_a_row_of_dashes():
    """When all seeds diverged the row is there and empty."""
    table = summary_table(summarize([_result(0, 0, 1.0), _result(5, 0, 0.0, failure="inf")]))
    assert table.splitlines()[3].count("–") == 2


def test_strength_zero_is_run_once():
    """Two distributions and three seeds: three plain runs and six with noise, from the first seed on."""
    grid = cells([0.0, 5.0], ["uniform", "gaussian"], 3, first_seed=7)
    assert len(grid) == 9
    assert [cell.name for cell in grid[:2]] == ["alpha-0_none_seed-7", "alpha-0_none_seed-8"]


@pytest.mark.parametrize(
    ("alphas", "noises", "num_seeds", "complaint"),
    [
        ([], ["uniform"], 1, "alphas is empty"),
        ([1.0, 1.0], ["uniform"], 1, "alphas has a value twice"),
        ([-1.0], ["uniform"], 1, "alphas has -1.0"),
        ([float("nan")], ["uniform"], 1, "alphas has nan"),
        ([1.0], ["pink"], 1, "noise has 'pink'"),
        ([1.0], ["uniform"], 0, "seeds is 0"),
    ],
)
def test_impossible_grids_are_refused(alphas, noises, num_seeds, complaint):
    """Each is one sentence with the value."""
    with pytest.raises(InputError, match=complaint):
        cells(alphas, noises, num_seeds)
