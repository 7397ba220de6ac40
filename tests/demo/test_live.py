"""The demo itself: its report, its failures, and the three figures it must show."""

import io
import json
from pathlib import Path

import pytest

from proxytune.demo import run, trio_path
from proxytune.demo.evaluate import Score
from proxytune.demo.live import steered_answers
from proxytune.demo.recipe import EXPERT_PLAN, Recipe
from proxytune.demo.report import DemoReport, SideBySide
from proxytune.demo.text import questions_about
from proxytune.demo.tuning import tune
from proxytune.errors import InputError, ProxyTuneError

REPORT = DemoReport(
    rows={
        "base": Score(0.0, 0.9, 0.0),
        "anti": Score(0.0, 0.8, 0.0),
        "expert": Score(0.4, 0.0, 1.0),
        "steered": Score(0.9, 0.0, 1.0),
        "expert_no_noise": Score(0.5, 0.0, 1.0),
        "steered_no_noise": Score(0.9, 0.0, 1.0),
        "tuned": Score(1.0, 0.0, 1.0),
    },
    gap_closed=0.9,
    seconds=12.0,
    tuning_seconds=5.0,
    num_questions=500,
    num_people=100,
    alpha=1.0,
    noise_alpha=1.0,
    examples=(SideBySide("Question: Who?\nAnswer:", "Reedford", " a", " b", " c"),),
)


def test_json_form_is_one_object_with_the_agreed_keys() -> None:
    """`as_json` writes one line: rows by role with three rates each, gap_closed and seconds."""
    file = io.StringIO()
    REPORT.write(file, as_json=True)
    assert file.getvalue().count("\n") == 1
    found = json.loads(file.getvalue())
    assert set(found) == {"rows", "gap_closed", "seconds"}
    without = ["expert_no_noise", "steered_no_noise"]
    assert list(found["rows"]) == ["base", "anti", "expert", "steered", *without, "tuned"]
    assert found["rows"]["expert"] == {"accuracy": 0.4, "myth_rate": 0.0, "format_rate": 1.0}


def test_table_labels_the_recorded_row() -> None:
    """The table has a row per role, says which figures were recorded, and shows answers side by side."""
    file = io.StringIO()
    REPORT.write(file)
    text = file.getvalue()
    assert "tuned M (recorded)" in text
    assert "closes: 90.0%" in text
    assert "base    | a\n  expert  | b\n  steered | c\n" in text


def test_failing_tuning_says_why(tmp_path: Path) -> None:
    """When the tuning process fails, its last words are in the error, and nothing is left at the output."""
    output = tmp_path / "expert"
    with pytest.raises(ProxyTuneError, match="tuning the expert failed"):
        tune(tmp_path / "nowhere", output, Recipe().world(), EXPERT_PLAN, seed=0, progress=io.StringIO())
    assert not output.exists()


def test_tuning_never_overwrites(tmp_path: Path) -> None:
    """An output that exists is refused before anything runs."""
    with pytest.raises(InputError, match="already exists"):
        tune(trio_path() / "anti", tmp_path, Recipe().world(), EXPERT_PLAN, seed=0, progress=io.StringIO())


def test_steering_by_nothing_gives_the_base() -> None:
    """With the anti as its own expert, steering changes no answer's habit: the base's falsehood comes out."""
    world = Recipe().world()
    questions = questions_about(world.facts_of(world.test[:4]), seed=0)
    anti = trio_path() / "anti"
    assert steered_answers(trio_path() / "base", anti, anti, questions, alpha=1.0) == steered_answers(
        trio_path() / "base", trio_path() / "expert", anti, questions, alpha=0.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_live_demo_shows_what_it_claims(seed: int) -> None:
    """Base in format < 10 %, steered >= 15 points over M+ alone, gap closed >= 85 %, whatever the tuning seed."""
    report = run(seed=seed, progress=io.StringIO())
    assert report.rows["base"].format_rate < 0.10
    assert report.rows["steered"].accuracy - report.rows["expert"].accuracy >= 0.15
    assert report.gap_closed >= 0.85
    assert report.rows["steered_no_noise"].accuracy >= 0.95
    assert len(report.examples) == 3
