"""The length-controlled rate against AlpacaEval's annotations and its leaderboard."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks.scoring import alpacaeval
from benchmarks.scoring.length_controlled import ModelWeights, predict, read_difficulties, read_weights
from benchmarks.scoring.rows import read_rows
from proxytune.errors import InputError

_META = "metrics__weights__weighted_alpaca_eval_gpt4_turbo__length_controlled_v1__baseline_gpt4_1106_preview.csv"
_LEADERBOARD = "leaderboards__data_AlpacaEval_2__weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"


def _weights(alpaca_eval: Path) -> dict[str, ModelWeights]:
    return read_weights(alpaca_eval / "meta" / _META)


def _difficulties(alpaca_eval: Path) -> list[float]:
    return read_difficulties(alpaca_eval / "instruction_difficulty.recovered.csv")


def _leaderboard(alpaca_eval: Path) -> dict[str, dict[str, str]]:
    with (alpaca_eval / "meta" / _LEADERBOARD).open(encoding="utf-8", newline="") as file:
        return {row[""]: row for row in csv.DictReader(file)}


def test_predictions_equal_the_annotated_ones(alpaca_eval: Path) -> None:
    """All 805 published length-controlled preferences of Vicuna 13B follow from weights and difficulties, to 1e-9."""
    rows = read_rows(alpaca_eval / "annotations/vicuna-13b-v1.5.weighted.glm.json.gz")
    found = predict(_weights(alpaca_eval)["vicuna-13b-v1.5"], _difficulties(alpaca_eval))
    expected = [row.fields["glm_preference"] for row in rows]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9


def _error(row: dict[str, str], weights: ModelWeights, difficulties: list[float]) -> float:
    found = 100 * math.fsum(predict(weights, difficulties)) / len(difficulties)
    return abs(found - float(row["length_controlled_winrate"]))


def test_leaderboard_rates(alpaca_eval: Path) -> None:
    """Of the 199 leaderboard models with published weights, 197 rates follow to 1e-6 points.

    A model with fewer than 805 preferences may lack annotations (the package then takes the difficulties of the first
    places) or have some without a preference (it takes all 805); the leaderboard does not say which, so either reading
    counts. With all 805 for everybody it is 189 to 1e-3; with the first ones for everybody 194.
    """
    board, weights, difficulties = _leaderboard(alpaca_eval), _weights(alpaca_eval), _difficulties(alpaca_eval)
    models = sorted(set(board) & set(weights))
    assert len(models) == 199
    everything = {name: _error(board[name], weights[name], difficulties) for name in models}
    first = {name: _error(board[name], weights[name], difficulties[: int(board[name]["n_total"])]) for name in models}
    assert sum(error < 1e-3 for error in everything.values()) == 189
    assert sum(error < 1e-3 for error in first.values()) == 194
    assert {name for name in models if min(everything[name], first[name]) > 1e-6} == {"NullModel", "dbrx-instruct"}


def test_leaderboard_standard_errors(alpaca_eval: Path) -> None:
    """Where the leaderboard gives the rate's standard error, the spread of the predictions gives it to 1e-3."""
    board, weights, difficulties = _leaderboard(alpaca_eval), _weights(alpaca_eval), _difficulties(alpaca_eval)
    errors = {}
    for name in set(board) & set(weights):
        if board[name]["lc_standard_error"]:
            found = alpacaeval.mean(predict(weights[name], difficulties), scale=100).standard_error or 0.0
            errors[name] = abs(found - float(board[name]["lc_standard_error"]))
    assert len(errors) > 20
    assert max(errors.values()) < 1e-3


def test_prediction_by_hand() -> None:
    """Strength ln 3 with no difficulty is 3/4; far out nothing overflows."""
    assert predict(ModelWeights(strength=math.log(3), difficulty=5.0), [0.0]) == pytest.approx([0.75], abs=1e-15)
    assert predict(ModelWeights(strength=0.0, difficulty=1.0), [-2000.0, 2000.0]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,instruction_difficulty\n0,1.0\n2,1.0\n", r"line 3: the index is '2', not 1"),
        ("index,instruction_difficulty\n0,hard\n", r"line 2: column 'instruction_difficulty' is 'hard'"),
        ("index,instruction_difficulty\n0\n", r"line 2: has 1 cells, the header 2"),
        ("index,other\n0,1\n", r"line 1: there is no column 'instruction_difficulty'"),
        ("", r"line 1: there is no column"),
    ],
)
def test_broken_difficulties_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """A gap, a word, a short row, another file: refused with the line."""
    path = tmp_path / "difficulty.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_difficulties(path)
