"""`neft inspect` on a tiny model."""

from __future__ import annotations

import json

import pytest

from neft.commands import inspect as command
from neft.errors import InputError
from tests.neft.conftest import DIM, copy_rows, write_rows

from .conftest import run_command


@pytest.fixture
def arguments(model_folder, data_file):
    """A command line that inspects."""
    return ["--model", model_folder, "--data", data_file]


def test_tables_are_written(arguments, capsys):
    """One table of ratios, one of implementations, one of the check on the model; stdout only."""
    run_command(command, arguments)
    out = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ") and "found" in line]
    for part in ("noise to signal", "α = 5 acts as", "neft, and the paper's rule", "off in evaluation", "p95"):
        assert part in out
    assert "NO" not in out


def test_json_by_hand(model_folder, tmp_path, capsys):
    """Two documents of 4 and 9 tokens: lengths, ratio and padded α are what the formulas give."""
    rows = [{"prompt": "w1 w2", "completion": "w3"}, {"prompt": "w1 w2 w3 w4 w5 w6 w7", "completion": "w3"}]
    data = write_rows(tmp_path / "two.jsonl", rows)
    run_command(command, ["--model", model_folder, "--data", data, "--alphas", "2", "--alpha", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"] == {"mean": 6.5, "percentiles": {"p50": 4, "p90": 9, "p95": 9, "p99": 9}, "longest": 9}
    assert found["dim"] == DIM
    (ratio,) = found["ratios"]
    assert ratio["alpha"] == 2
    assert ratio["mean"] == pytest.approx(2 / (3**0.5 * found["sigma"] * (6.5 * DIM) ** 0.5))
    padded = found["effective"][1]
    assert (padded["lowest"], padded["highest"]) == pytest.approx((3 * (4 / 9) ** 0.5, 3.0))
    assert found["live"]["is_right"]
    assert found["live"]["alpha"] == 3
    assert not found["is_scaled"]


def test_a_scaled_embedding_is_explained(tmp_path, capsys, tokenizer):
    """Gemma's scale is measured, counted into the ratio, and explained."""
    from .test_live import _gemma

    folder = tmp_path / "gemma"
    _gemma().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = write_rows(tmp_path / "rows.jsonl", copy_rows(8))
    run_command(command, ["--model", folder, "--data", data])
    assert "times weaker than on a model without the scale" in capsys.readouterr().out
    run_command(command, ["--model", folder, "--data", data, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["scale"] == pytest.approx(4.0, rel=1e-3)
    assert found["is_scaled"]


def test_no_strength_is_refused(arguments):
    """With α = 0 there is nothing to inspect."""
    with pytest.raises(InputError, match=r"alpha is 0.0; inspect needs a strength above 0"):
        run_command(command, [*arguments, "--alpha", "0"])
