"""Columns: what is loaded for each, what it answers, and how prompts reach its roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.answerer import Formats
from benchmarks.cli import main
from benchmarks.columns import Session, columns_of
from benchmarks.registry import TASKS
from proxytune import ProxyGenerator
from tests import conftest
from tests.benchmarks.conftest import Bench, results


def rows_of(folder: Path, column: str) -> list[dict[str, Any]]:
    """Return a run's rows of one column, without its name."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key != "column"} for row in rows if row["column"] == column]


def test_columns_are_what_they_are_called(bench: Bench, readers: dict[str, Path], tmp_path: Path) -> None:
    """Strength 0 is the base column, another model's column is that model's own, and the expert's is the expert's."""
    compare = f"base,expert,anti,steered,again={readers['expert']},tuned={readers['tuned']}"
    bench(tmp_path / "run", "--compare", compare, "--alpha", "0,1", "--parts", "mc", "--limit", "3")
    rows = {name: rows_of(tmp_path / "run", name) for name in ("base", "expert", "anti", "again", "tuned")}
    rows |= {name: rows_of(tmp_path / "run", f"steered@{name}") for name in ("0", "1")}
    assert rows["0"] == rows["base"]
    assert rows["again"] == rows["expert"]
    assert len({json.dumps(found) for name, found in rows.items() if name not in ("0", "again")}) == 5


def test_a_column_equals_the_generator(bench: Bench, readers: dict[str, Path], tmp_path: Path) -> None:
    """The steered column's log-probabilities are those of ProxyGenerator.score on the same text."""
    bench(tmp_path / "run", "--compare", "steered", "--alpha", "0.7", "--parts", "mc", "--limit", "1")
    [row] = rows_of(tmp_path / "run", "steered")
    from benchmarks.tasks.truthfulqa_mc import mc_prompt

    generator = ProxyGenerator(*(str(readers[role]) for role in ("base", "expert", "anti")), alpha=0.7)
    answers = list(row["logprobs"])
    scores = generator.score([mc_prompt(row["Question"])] * len(answers), [f" {answer}" for answer in answers])
    assert list(row["logprobs"].values()) == pytest.approx([score.total for score in scores], abs=1e-5)


def test_one_model_needs_no_others(readers: dict[str, Path], questions_csv: Path, tmp_path: Path) -> None:
    """A base alone is one column, made by one loaded model."""
    arguments = ["truthfulqa", "--base", str(readers["base"]), "--data", str(questions_csv), "--parts", "mc"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["columns"] == ["base"]
    assert config["settings"]["models"]["base"]["base"]["dtype"] == "float32"
    args = _arguments(base=str(readers["base"]))
    [column] = columns_of(args, default=["base"])
    with Session(args) as models:
        assert len(models.answerer(column, Formats()).generator.model.roles) == 1


def test_an_adapter_is_an_expert_with_its_anti(readers: dict[str, Path], tmp_path: Path) -> None:
    """The expert column of an adapter is the adapted anti itself, to rounding."""
    conftest.save_adapter(readers["anti"], tmp_path / "lora", seed=5)
    args = _arguments(base=str(readers["base"]), expert=str(tmp_path / "lora"), anti=str(readers["anti"]))
    [column] = columns_of(args, default=["expert"])
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(readers["anti"]), tmp_path / "lora")
    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (merged / name).write_bytes((readers["anti"] / name).read_bytes())
    [alone] = columns_of(_arguments(base=str(merged)), default=["base"])
    prompts, answers = ["What is it?"] * 2, [" This.", " No."]
    found = []
    for one in (column, alone):
        with Session(args) as models:
            found.append([like.logprob for like in models.answerer(one, Formats()).likelihoods(prompts, answers)])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_formats_reach_each_role(readers: dict[str, Path]) -> None:
    """A part's formats go to the roles they are for, the user's take their place, and equal ones need no reload."""
    args = _arguments(**{role: str(readers[role]) for role in ("base", "expert", "anti")})
    args.expert_prompt = "alpaca"
    steered, base, expert = columns_of(args, default=["steered", "base", "expert"])
    part = Formats(base="B {prompt}", expert="E {prompt}", anti="A {prompt}", alone="alone {prompt}")
    assert steered.formats(part, args) == {
        "base_prompt": "B {prompt}",
        "expert_prompt": "alpaca",
        "anti_prompt": "A {prompt}",
    }
    assert set(base.formats(part, args).values()) == {"B {prompt}"}
    assert set(expert.formats(part, args).values()) == {"alpaca"}
    with Session(args) as models:
        one, other = models.answerer(base, part), models.answerer(base, Formats())
        assert one.generator is other.generator
        assert (one.render("x"), other.render("x")) == ("B x", "x")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--compare", "base,base"], "'base' twice"),
        (["--compare", "best"], "'best'"),
        (["--compare", "steered=x"], "NAME=MODEL"),
        (["--parts", "mc,mc4"], "'mc4'"),
        (["--limit", "0"], "limit is 0"),
        (["--alpha", "1,x"], "finite numbers"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--shard", "2/1"], "i/n"),
        (["--base", "x", "--compare", "expert"], "--expert"),
        (["--compare", "base", "--alpha", "2"], "--alpha"),
        (["--compare", "base", "--tuned-prompt", "chat"], "--tuned-prompt"),
    ],
)
def test_bad_options(
    options: list[str], reason: str, questions_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option ends in one sentence that names it, exit code 2, and no folder."""
    arguments = ["truthfulqa", "--data", str(questions_csv), "--output", str(tmp_path / "run"), *options]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert reason in told.err
    assert told.out == ""
    assert not (tmp_path / "run").exists()


def test_the_demo_world_refuses_what_it_would_ignore(capsys: pytest.CaptureFixture[str]) -> None:
    """Options for TruthfulQA's own questions are errors where the demo world's are asked."""
    for options in (["--parts", "mc"], ["--truncate"], ["--chat-expert"], ["--max-new-tokens", "9"]):
        assert main(["truthfulqa", *options]) == 2
        assert f"{options[0]} is for TruthfulQA's own questions" in capsys.readouterr().err


def test_every_name_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`bench --help` lists all tasks, and each task's help shows its options."""
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in TASKS:
        assert name in listed
        assert main([name, "--help"]) == 0
        assert "--compare" in capsys.readouterr().out


def test_the_demo_world_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without data and models the bundled trio answers its own world: steering turns its base from myths to truths."""
    assert main(["truthfulqa", "--limit", "12", "--compare", "base,steered", "--output", str(tmp_path / "run")]) == 0
    found = results(json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")))
    for part, measure in (("world-mc", "MC1"), ("world-open", "accuracy")):
        assert found[part, measure, "base"]["value"] == 0
        assert found[part, measure, "steered"]["value"] > 0.9
    assert "world-open myth rate" in capsys.readouterr().out


def _arguments(**roles: str) -> Any:
    """Return the command's arguments with these roles."""
    from benchmarks.cli import _parser

    options = [part for role, model in roles.items() for part in (f"--{role}", model)]
    parser, _ = _parser("truthfulqa")
    return parser.parse_args(["truthfulqa", *options])
