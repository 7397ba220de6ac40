"""Length-controlled rates fitted by the package's own code, against made verdicts and published figures."""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.scoring.length_controlled import read_difficulties
from benchmarks.scoring.rows import read_rows
from benchmarks.tasks.alpacaeval.length_control import ControlledRate, LengthControl, controlled_rates
from tests.benchmarks.length_judge import length_judge
from tests.benchmarks.test_alpacaeval_judging import arguments, make_run

pytestmark = pytest.mark.skipif(
    find_spec("alpaca_eval") is None, reason="alpaca-eval is not installed: proxytune[bench]"
)

_NUM_ROWS = 200
_LENGTH_WEIGHT = -2.0  # longer references lose: lengths are the reference's minus the model's
_BOARD = "leaderboards__data_AlpacaEval_2__weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"


def length_bound() -> tuple[list[dict[str, Any]], list[float], list[float]]:
    """Return verdicts that depend on lengths alone, most answers being longer; difficulties; standardised lengths."""
    draws = random.Random(0)
    lengths = [draws.randint(1, 60) for _ in range(_NUM_ROWS)]
    longer = [20 - length for length in lengths]
    scale = statistics.stdev(longer)
    rows = [
        {
            "instruction": str(number),
            "output_1": "r" * 20,
            "output_2": "m" * length,
            "generator_1": "gpt4_1106_preview",
            "generator_2": "steered",
            "preference": 1 + logistic(_LENGTH_WEIGHT * math.tanh(-(length - 20) / scale)),
        }
        for number, length in enumerate(lengths)
    ]
    return rows, [draws.gauss(0, 1) for _ in rows], [one / scale for one in longer]


def rate_of(rows: list[dict[str, Any]], control: LengthControl) -> ControlledRate:
    """Return the rate of one column."""
    return controlled_rates({"steered": rows}, control)["steered"]


def logistic(value: float) -> float:
    """Return the logistic function."""
    return 1 / (1 + math.exp(-value))


def test_verdicts_by_length_alone_are_levelled() -> None:
    """A model that wins by length alone has a rate of 50 % once lengths are held equal; three verdicts are too few."""
    rows, difficulties, _ = length_bound()
    assert 100 * statistics.mean(row["preference"] - 1 for row in rows) > 60
    by_text = {row["instruction"]: value for row, value in zip(rows, difficulties, strict=True)}
    rows[3]["preference"] = None
    few = [{**row, "preference": row["preference"] if number < 4 else None} for number, row in enumerate(rows)]
    found = controlled_rates({"steered": rows, "few": few}, LengthControl(difficulties=by_text))
    assert found["steered"].reason is None
    assert found["steered"].metric.n == _NUM_ROWS
    assert found["steered"].metric.value == pytest.approx(50, abs=1.0)
    assert found["few"].metric.value is None
    assert "3 verdicts are too few" in str(found["few"].reason)


def test_the_published_form_is_the_packages_own(tmp_path: Path) -> None:
    """With a df_gamed.csv the package fits its length_controlled_v1 on it, offline, and levels such verdicts too."""
    rows, difficulties, lengths = length_bound()
    path = tmp_path / "df_gamed.csv"
    fields = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        for name in ("concise", "verbose"):
            for index, (length, difficulty) in enumerate(zip(lengths, difficulties, strict=True)):
                gamed = length + (1 if name == "concise" else -1)
                preference = logistic(_LENGTH_WEIGHT * math.tanh(gamed))
                writer.writerow(dict(zip(fields, (name, index, preference, gamed, difficulty, False), strict=True)))
    found = rate_of(rows, LengthControl(df_gamed=path))
    assert found.reason is None
    assert found.metric.value == pytest.approx(50, abs=1.0)
    path.write_text("model,index\nconcise,0\n", encoding="utf-8")
    found = rate_of(rows, LengthControl(df_gamed=path))
    assert found.metric.value is None
    assert "instruction_difficulty" in str(found.reason)


def test_the_fit_without_gamed_baselines_comes_out_lower(data: Path) -> None:
    """On published verdicts it is 1.2 and 1.9 points below the leaderboard, which is why it is marked."""
    folder = data / "alpaca_eval"
    if not folder.is_dir():
        pytest.skip(f"no AlpacaEval data at {folder}")
    texts = [row.text("instruction") for row in read_rows(folder / "gpt4_1106_preview.model_outputs.json.gz")]
    difficulties = dict(zip(texts, read_difficulties(folder / "instruction_difficulty.recovered.csv"), strict=True))
    with (folder / "meta" / _BOARD).open(encoding="utf-8", newline="") as lines:
        board = {row[""]: float(row["length_controlled_winrate"]) for row in csv.DictReader(lines)}
    files = {"phi-2": "phi-2.weighted", "vicuna-13b-v1.5": "vicuna-13b-v1.5.weighted.glm"}
    annotations = {
        model: [dict(row.fields) for row in read_rows(folder / f"annotations/{file}.json.gz")]
        for model, file in files.items()
    }
    found = controlled_rates(annotations, LengthControl(difficulties=difficulties))
    values = {model: rate.metric.value for model, rate in found.items()}
    assert values == pytest.approx({"phi-2": 3.178, "vicuna-13b-v1.5": 8.606}, abs=0.01)
    gaps = {model: board[model] - (value or 0) for model, value in values.items()}
    assert gaps == pytest.approx({"phi-2": 1.22, "vicuna-13b-v1.5": 1.88}, abs=0.01)


def test_the_command_says_which_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The form stands in the output; another reference, or places that are not the reference's, are refused."""
    run = make_run(tmp_path, ["o" * (4 * number) for number in range(12)])
    difficulty = tmp_path / "difficulty.csv"
    difficulty.write_text(
        "index,instruction_difficulty\n" + "".join(f"{n},0.{n}\n" for n in range(12)), encoding="utf-8"
    )
    with length_judge() as judge:
        assert main(arguments(run, judge, "--instruction-difficulty", str(difficulty))) == 0
        told = capsys.readouterr().out
        assert "length-controlled form: length_controlled_noreg" in told
        assert "length-controlled 5" in told or "length-controlled 4" in told
        reference = tmp_path / "reference.json"
        shuffled = tmp_path / "shuffled.json"
        shuffled.write_text(json.dumps(json.loads(reference.read_text(encoding="utf-8"))[::-1]), encoding="utf-8")
        other = ("--reference", str(shuffled), "--output", str(tmp_path / "other"), "--df-gamed", str(difficulty))
        assert main([*arguments(run, judge), *other]) == 2
        assert "in the reference's order" in capsys.readouterr().err
        reference.write_text(
            reference.read_text(encoding="utf-8").replace("gpt4_1106_preview", "other"), encoding="utf-8"
        )
        assert main(arguments(run, judge, "--instruction-difficulty", str(difficulty))) == 2
    assert "is defined against gpt4_1106_preview" in capsys.readouterr().err
