"""The shipped trio, measured on its own weights."""

from pathlib import Path
from typing import Any

import pytest

from proxytune.demo import trio_path
from proxytune.demo.evaluate import cloze_knowledge, gap_closed, score
from proxytune.demo.live import answers_of, held_out_questions, load
from proxytune.demo.recipe import Recipe
from proxytune.demo.report import read_recorded, recorded_score
from proxytune.demo.world import World
from proxytune.errors import InputError

ROLES = ("base", "expert", "anti")
NUM_SAMPLED = 100


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The shipped recorded.json."""
    return read_recorded(trio_path())


@pytest.fixture(scope="module")
def world(recorded: dict[str, Any]) -> World:
    """The world the shipped models were trained on."""
    return Recipe(seed=recorded["seed"]).world()


def test_trio_is_small() -> None:
    """All that ships is at most 15 MB, no file of it 4 MiB, and weights are safetensors only."""
    files = [path for path in trio_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert max(path.stat().st_size for path in files) < 4 * 2**20
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_roles_share_one_tokenizer() -> None:
    """The three tokenizers are the same file."""
    assert len({(trio_path() / role / "tokenizer.json").read_bytes() for role in ROLES}) == 1


def test_anti_is_a_tenth_of_the_base_or_less(recorded: dict[str, Any]) -> None:
    """The recorded sizes are the shipped models' sizes; the base has millions, the anti at most a tenth of them."""
    sizes = {role: load(trio_path() / role)[0].num_parameters() for role in ROLES}
    assert sizes == {role: recorded["parameters"][role] for role in ROLES}
    assert sizes["base"] > 2_000_000
    assert sizes["anti"] == sizes["expert"] <= sizes["base"] / 10


def test_base_knows_what_the_small_models_do_not(recorded: dict[str, Any], world: World) -> None:
    """By cloze on test people the base knows over 95 %, the anti under 60 %, as recorded to a few facts."""
    facts = world.facts_of(world.test)
    known = {role: cloze_knowledge(*load(trio_path() / role), facts) for role in ROLES}
    assert known["base"] > 0.95
    assert known["anti"] < 0.6
    for role in ROLES:
        assert known[role] == pytest.approx(recorded["cloze_test_people"][role], abs=0.02)


def test_base_repeats_falsehoods_and_does_not_follow_the_format(world: World) -> None:
    """On sampled questions the base is in format under 10 % and answers mostly with the falsehood."""
    questions = held_out_questions(world)[::5][:NUM_SAMPLED]
    base = score(answers_of(trio_path() / "base", questions), questions)
    assert base.format_rate < 0.10
    assert base.myth_rate > 0.8


def test_small_models_score_as_recorded(recorded: dict[str, Any], world: World) -> None:
    """Anti and shipped expert answer all questions as recorded, to a few answers."""
    questions = held_out_questions(world)
    for role in ("anti", "expert"):
        measured = score(answers_of(trio_path() / role, questions), questions).as_dict()
        assert measured == pytest.approx(recorded["rows"][role], abs=0.02)


def test_recorded_figures_agree_with_each_other(recorded: dict[str, Any]) -> None:
    """The recorded gap follows from the recorded rows, tuned M is in format, and the label says recorded."""
    base, steered, tuned = (recorded_score(recorded, role) for role in ("base", "steered", "tuned"))
    assert gap_closed(base, steered, tuned) == pytest.approx(recorded["gap_closed"])
    assert tuned.accuracy > 0.9
    assert tuned.format_rate > 0.9
    assert "recorded" in recorded["label"]


def test_trio_without_records_is_refused(tmp_path: Path) -> None:
    """A folder that is no trio is an error that names the recipe."""
    with pytest.raises(InputError, match=r"proxytune\.demo\.train"):
        read_recorded(tmp_path)
    with pytest.raises(InputError, match="no score of 'tuned'"):
        recorded_score({"rows": {}}, "tuned")
