"""AlpacaEval's rates against the published ones and by hand."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring import alpacaeval
from benchmarks.scoring.length_controlled import ModelWeights, read_difficulties, read_weights
from benchmarks.scoring.rows import Row, read_rows
from proxytune.errors import InputError

_META = "metrics__weights__weighted_alpaca_eval_gpt4_turbo__length_controlled_v1__baseline_gpt4_1106_preview.csv"
_LEADERBOARD = "leaderboards__data_AlpacaEval_2__weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"


def test_published_alpaca_farm(published: Path, metrics_of: Callable[[Path], dict[str, Any]]) -> None:
    """Win rate, standard error, wins and average length equal the paper's steered 13B run."""
    folder = published / "alpaca_farm/dexperts-13B"
    metrics = metrics_of(folder / "metrics.json")
    score = alpacaeval.score(read_rows(folder / "annotations.json.gz"))
    win_rate, length = score.metrics["win_rate"], score.metrics["average_length"]
    assert win_rate.value == pytest.approx(metrics["win_rate"], rel=1e-15)
    assert win_rate.standard_error == pytest.approx(metrics["standard_error"], rel=1e-12)
    assert (win_rate.n, score.n) == (metrics["n_total"], 805)
    assert score.counts["num_wins"] == metrics["n_wins"]
    assert score.counts["num_wins_reference"] == metrics["n_wins_base"]
    assert score.counts["num_draws"] == metrics["n_draws"]
    assert length.value is not None
    assert math.floor(length.value) == metrics["avg_length"]


@pytest.mark.parametrize(
    ("file", "model", "length"),
    [("phi-2.weighted", "phi-2", 628), ("vicuna-13b-v1.5.weighted.glm", "vicuna-13b-v1.5", 1061)],
)
def test_published_alpaca_eval_2(alpaca_eval: Path, file: str, model: str, length: int) -> None:
    """Rates, error and counts from the annotations equal the board's row, phi-2's two missing rows included."""
    with (alpaca_eval / "meta" / _LEADERBOARD).open(encoding="utf-8", newline="") as lines:
        board = next(row for row in csv.DictReader(lines) if row[""] == model)
    control = alpacaeval.LengthControl(
        weights=read_weights(alpaca_eval / "meta" / _META),
        difficulties=read_difficulties(alpaca_eval / "instruction_difficulty.recovered.csv"),
    )
    score = alpacaeval.score(read_rows(alpaca_eval / f"annotations/{file}.json.gz"), length_control=control)
    found = score.metrics
    assert found["win_rate"].value == pytest.approx(float(board["win_rate"]), abs=1e-9)
    assert found["win_rate"].standard_error == pytest.approx(float(board["standard_error"]), abs=1e-9)
    assert found["discrete_win_rate"].value == pytest.approx(float(board["discrete_win_rate"]), abs=1e-12)
    assert found["length_controlled_win_rate"].value == pytest.approx(
        float(board["length_controlled_winrate"]), abs=1e-8
    )
    counts = [score.counts[name] for name in ("num_wins", "num_wins_reference", "num_draws")]
    assert counts == [int(board[name]) for name in ("n_wins", "n_wins_base", "n_draws")]
    assert found["win_rate"].n == int(board["n_total"])
    assert score.counts["num_missing"] == 805 - int(board["n_total"])
    assert score.counts["num_judged_otherwise"] == score.counts["num_unparsable"] == 0
    assert found["average_length"].value is not None
    assert math.floor(found["average_length"].value) == length


def test_rows_are_matched_by_instruction(alpaca_eval: Path) -> None:
    """Given the reference's order, the rate of a shuffled file does not move; by place it does."""
    rows = read_rows(alpaca_eval / "annotations/phi-2.weighted.json.gz")
    reference = read_rows(alpaca_eval / "gpt4_1106_preview.model_outputs.json.gz")
    weights = read_weights(alpaca_eval / "meta" / _META)
    difficulties = read_difficulties(alpaca_eval / "instruction_difficulty.recovered.csv")
    matched = alpacaeval.LengthControl(
        weights=weights, difficulties=difficulties, instructions=[row.text("instruction") for row in reference]
    )
    placed = alpacaeval.LengthControl(weights=weights, difficulties=difficulties)

    def rate(ordered: list[Row], control: alpacaeval.LengthControl) -> float | None:
        return alpacaeval.score(ordered, length_control=control).metrics["length_controlled_win_rate"].value

    assert rate(rows, matched) == pytest.approx(rate(rows[::-1], matched), abs=1e-12)
    assert rate(rows, matched) != pytest.approx(rate(rows, placed), abs=1e-3)


def _annotation(instruction: str, preference: object, **more: object) -> dict[str, object]:
    names = {"generator_1": "reference", "generator_2": "model", "output_2": "four"}
    return {"instruction": instruction, "preference": preference} | names | more


def _completion(**logprobs: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]
    return {"logprobs": {"content": [{"top_logprobs": top}]}}


def test_rates_by_hand(make_rows: Callable[..., list[Row]]) -> None:
    """A win, a loss, two draws (1.5 and 0) and a missing verdict: 50 % of four, variance 1/6."""
    rows = make_rows(*(_annotation(str(n), value) for n, value in enumerate((2, 1, 1.5, 0, None))))
    score = alpacaeval.score(rows)
    rate = score.metrics["win_rate"]
    assert (rate.value, rate.n) == (50.0, 4)
    assert rate.standard_error == pytest.approx(100 * math.sqrt(0.5 / 3) / 2)
    assert score.metrics["discrete_win_rate"].value == 50.0
    assert score.metrics["average_length"].value == 4.0
    assert [score.counts[name] for name in ("num_wins", "num_wins_reference", "num_draws")] == [1, 1, 2]
    assert (score.counts["num_unparsable"], score.counts["num_missing"]) == (1, 800)


def test_log_probabilities_decide_over_the_stored_preference(make_rows: Callable[..., list[Row]]) -> None:
    """Log-probabilities make the preference; a stored one that differs is counted; without m or M there is none."""
    made = alpacaeval.score(
        make_rows(
            _annotation("a", 1.5, raw_completion=_completion(m=-1.0, M=-1.0)),
            _annotation("b", 2, raw_completion=_completion(m=-1.0, M=-1.0)),
            _annotation("c", 2, raw_completion=_completion(The=-0.1)),
        )
    )
    assert (made.metrics["win_rate"].value, made.metrics["win_rate"].n) == (50.0, 2)
    assert (made.counts["num_judged_otherwise"], made.counts["num_unparsable"]) == (1, 1)
    assert made.counts["num_from_logprobs"] == 2


@pytest.mark.parametrize("preference", [0.5, 2.5, -1, "2"])
def test_what_is_no_preference_is_refused(make_rows: Callable[..., list[Row]], preference: object) -> None:
    """A preference that is neither 0 nor from 1 to 2 is refused with its line."""
    with pytest.raises(InputError, match=r"line 1: field 'preference'"):
        alpacaeval.score(make_rows(_annotation("a", preference)))


def test_two_models_in_one_file_are_refused(make_rows: Callable[..., list[Row]]) -> None:
    """Rows of a second model are refused, not averaged with the first."""
    with pytest.raises(InputError, match=r"line 2: field 'generator_2' is 'other'"):
        alpacaeval.score(make_rows(_annotation("a", 1), _annotation("b", 1, generator_2="other")))


def test_length_control_that_does_not_fit_is_refused(make_rows: Callable[..., list[Row]]) -> None:
    """A model without weights, too few difficulties, an instruction altered by one blank: each is refused by name."""
    weights = {"model": ModelWeights(strength=0.0, difficulty=0.0)}
    rows = make_rows(_annotation("a", 1), _annotation("b", 1))
    fits = alpacaeval.LengthControl(weights=weights, difficulties=[0.0, 0.0], instructions=["b", "a"])
    assert alpacaeval.score(rows, length_control=fits).metrics["length_controlled_win_rate"].value == 50.0
    cases = {
        "no published weights for 'model'": alpacaeval.LengthControl(weights={}, difficulties=[0.0, 0.0]),
        "2 instructions, and difficulties for only 1": alpacaeval.LengthControl(weights=weights, difficulties=[0.0]),
        "line 2: the instruction 'b' is none": alpacaeval.LengthControl(
            weights=weights, difficulties=[0.0, 0.0], instructions=["a", "b "]
        ),
    }
    for message, control in cases.items():
        with pytest.raises(InputError, match=message):
            alpacaeval.score(rows, length_control=control)
