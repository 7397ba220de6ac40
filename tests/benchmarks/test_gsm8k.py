"""GSM8K as the paper ran it: its prompts and rows, the scorer's own verdicts, and runs that go on after a cut."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.scoring import gsm8k as scorer
from benchmarks.scoring.rows import Row, read_rows
from benchmarks.tasks.gsm8k import CUTS, Question, answer_row, prepare
from proxytune.prompts import PromptFormat
from tests.benchmarks.conftest import predictions

ANSWERS = ["He has 2 + 2 = 4.\n#### 4", "It is -3 below.\n#### -3", "A total of 1,250.\n#### 1,250"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like GSM8K's."""
    path = tmp_path_factory.mktemp("gsm8k") / "test.jsonl"
    rows = [{"question": f"How many are {number} and none? ", "answer": text} for number, text in enumerate(ANSWERS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(readers: dict[str, Path], questions: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return the function that runs `bench gsm8k` on the tiny trio and gives what metrics.json holds."""

    def call(output: Path, *options: str) -> dict[str, Any]:
        roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(readers[role]))]
        given = ["gsm8k", *roles, "--data", str(questions), "--output", str(output), "--max-new-tokens", "12"]
        code = main([*given, "--chunk-size", "2", *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        return found

    return call


def _job(path: Path, *, is_chat_expert: bool = False) -> Any:
    given = argparse.Namespace(data=str(path), data_dir=None, limit=None, chat_expert=is_chat_expert, max_new_tokens=9)
    [part] = prepare(given).parts
    return part


def test_prompts_are_the_published_ones(data: Path) -> None:
    """The first prompt equals the published one byte for byte, and questions and answers are the published 1,319."""
    folder = data / "published_proxy_tuning_13b/gsm/dexperts-13B"
    part = _job(data / "gsm8k/test.jsonl.gz")
    shown = PromptFormat(part.formats.base).text(part.questions[0].body)
    assert shown == (folder / "example_prompt.txt").read_text(encoding="utf-8")
    published = [(row.text("question"), row.text("answer")) for row in read_rows(folder / "predictions.jsonl.gz")]
    assert [(question.question, question.answer) for question in part.questions] == published
    assert len(published) == scorer.BENCHMARK_ROWS


def test_chat_experts_get_a_turn(questions: Path) -> None:
    """A chat expert reads a turn, spaced as published beside a base and alone; base and anti read the plain prompt."""
    part = _job(questions, is_chat_expert=True)
    body = "Answer the following question.\n\nQuestion: Why?"
    shown = {role: PromptFormat(getattr(part.formats, role)).text(body) for role in ("base", "expert", "anti", "alone")}
    assert shown["base"] == shown["anti"] == f"{body}\nAnswer:"
    assert shown["expert"] == f"[INST]{body} [/INST] Answer:"
    assert shown["alone"] == f"[INST] {body} [/INST] Answer:"


@pytest.mark.parametrize("model", ["dexperts-13B", "llama2-13B"])
def test_verdicts_are_the_scorer_s(data: Path, model: str) -> None:
    """On the published answers every prediction is the published one and both figures equal the scorer's."""
    rows = read_rows(data / "published_proxy_tuning_13b/gsm" / model / "predictions.jsonl.gz")
    made = [
        answer_row(Question(question=row.text("question"), answer=row.text("answer")), row.text("model_output"))
        for row in rows
    ]
    assert [row["prediction"] for row in made] == [row.text("prediction") for row in rows]
    # Published answers were cut where ours are.
    assert not any(cut in row.text("model_output") for row in rows for cut in CUTS)
    scored = scorer.score(rows)
    for figure, field in (("exact_match", "is_exact_match"), ("numeric_match", "is_numeric_match")):
        assert sum(row[field] for row in made) / len(made) == scored.metrics[figure].value


def test_a_run_scores_as_its_file_does(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A run's figures equal what the scorer finds in its predictions."""
    metrics = run(tmp_path / "run", "--compare", "steered")
    fields = [json.loads(line) for line in predictions(tmp_path / "run").decode().splitlines()]
    scored = scorer.score([Row(place=str(number), fields=row) for number, row in enumerate(fields)])
    found = {result["measure"]: result["value"] for result in metrics["results"]}
    assert [row["answer"] for row in fields] == ["4", "-3", "1250"]
    assert found["exact match"] == scored.metrics["exact_match"].value
    assert found["numeric match"] == scored.metrics["numeric_match"].value
    assert scored.counts["num_parsed_otherwise"] == 0


def test_generation_resumes(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A run whose file was cut goes on to the same bytes and figures."""
    options = ("--compare", "base,steered")
    expected = run(tmp_path / "run", *options)
    whole = predictions(tmp_path / "run")
    assert len(whole.splitlines()) == 2 * len(ANSWERS)
    for share in (0.2, 0.7):
        (tmp_path / "run" / "predictions.jsonl").write_bytes(whole[: int(len(whole) * share)])
        assert run(tmp_path / "run", *options, "--resume") == expected
        assert predictions(tmp_path / "run") == whole


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row without a number, and no file at all, end with a sentence that names GSM8K's."""
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "four"}) + "\n", encoding="utf-8")
    for given in (["--data", str(path)], []):
        assert main(["gsm8k", "--base", "no-such-model", *given]) == 2
        assert "test.jsonl" in capsys.readouterr().err
