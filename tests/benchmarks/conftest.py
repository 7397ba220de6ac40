"""A tiny trio that reads any text, a file of questions in TruthfulQA's form, and a way to run `bench` on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from tests import tiny

NUM_QUESTIONS = 7
_VOCAB_SIZE = 262  # of the byte tokenizer: wider logits would be cut to it, and compared with those that are not

Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved base, expert, anti and tuned, with the byte tokenizer and room for TruthfulQA's examples."""
    root = tmp_path_factory.mktemp("readers")
    for seed, name in enumerate(("base", "expert", "anti", "tuned")):
        width = 48 if name in ("base", "tuned") else 32
        model = tiny.new_model("llama", seed, vocab_size=_VOCAB_SIZE, hidden_size=width, context=1024, scale=0.2)
        model.save_pretrained(root / name)
        tiny.byte_tokenizer().save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def questions_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV like TruthfulQA's, with its byte order mark, whose fourth question repeats an answer."""
    path = tmp_path_factory.mktemp("data") / "TruthfulQA.csv"
    fields = ["Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        for number in range(NUM_QUESTIONS):
            wrong = [f"It is {number + other}" for other in range(2, 3 + number % 4)]
            right = [f"It is {number}", "Nobody knows", *(["Nobody knows"] if number == 3 else [])]
            writer.writerow(
                {
                    "Category": "Numbers" if number % 2 else "Counting",
                    "Question": f"What is {number} and none?",
                    "Best Answer": right[0],
                    "Correct Answers": "; ".join(right),
                    "Incorrect Answers": "; ".join(wrong),
                }
            )
    return path


@pytest.fixture
def bench(readers: dict[str, Path], questions_csv: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Return the function that runs `bench truthfulqa` on the tiny trio and gives what metrics.json holds."""

    def run(output: Path, *options: str) -> dict[str, Any]:
        code = main([*command(readers, questions_csv, output), *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        return found

    return run


def command(readers: dict[str, Path], data: Path, output: Path) -> list[str]:
    """Return the arguments of a run on these models and questions."""
    roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(readers[role]))]
    sizes = ["--batch-size", "4", "--chunk-size", "2", "--max-new-tokens", "6"]
    return ["truthfulqa", *roles, "--data", str(data), "--output", str(output), *sizes]


def predictions(folder: Path) -> bytes:
    """Return a run's predictions as they are on disk."""
    return (folder / "predictions.jsonl").read_bytes()


def results(metrics: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the results by part, measure and column."""
    return {(found["part"], found["measure"], found["column"]): found for found in metrics["results"]}
