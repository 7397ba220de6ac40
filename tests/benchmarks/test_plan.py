"""`--dry-run`: the plan of a run from configurations and tokenizers alone, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cli import main
from tests import tiny
from tests.benchmarks.conftest import NUM_QUESTIONS

Plan = Callable[..., str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def empty(readers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The readers' folders before the download: no weights."""
    root = tmp_path_factory.mktemp("empty")
    for name, folder in readers.items():
        shutil.copytree(folder, root / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def plan(empty: dict[str, Path], questions_csv: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Return the function that asks for a plan and gives what it says, on either stream."""

    def run(*options: str, code: int = 0, task: str = "truthfulqa") -> str:
        roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(empty[role]))]
        data = [] if "--data" in options else ["--data", str(questions_csv)]
        assert main([task, *roles, *data, "--dry-run", *options]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    return run


def test_a_plan_without_weights(plan: Plan, empty: dict[str, Path], tmp_path: Path) -> None:
    """Every column has its memory, requests and hours, each role its prompt as it will read it; nothing is written."""
    output = tmp_path / "runs" / "one"
    told = plan(
        "--compare",
        f"base,steered,tuned={empty['tuned']}",
        "--parts",
        "letter,open",
        "--chat-expert",
        "--output",
        str(output),
    )
    lines = told.splitlines()
    steered = next(line.split() for line in lines if line.startswith("steered  "))
    # Ten new tokens of a letter and 512 of an open answer, for each question.
    assert steered[-2] == f"{NUM_QUESTIONS * (10 + 512):,}"
    assert steered[-4] == str(2 * NUM_QUESTIONS)
    assert "GPU hours on h100" in told
    assert "tuned, open: the first of 7 prompts" in told
    shown = [line for line in lines if "What is 0 and none?" in line]
    assert sum(line.startswith("  expert:") and "[INST]" in line for line in shown) == 2
    # The tuned model alone reads a chat turn; base and anti beside the expert do not.
    assert [("[INST]" in line) for line in shown if line.startswith("  base:")] == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]
    assert not any("[INST]" in line for line in shown if line.startswith("  anti:"))
    assert not (tmp_path / "runs").exists()


def test_tokens_are_each_roles_own(plan: Plan) -> None:
    """A role with a longer format reads more tokens: the base's stay, and the plan says which prompts do not fit."""
    short = plan("--parts", "open", "--max-new-tokens", "4", "--compare", "steered")
    long = plan(
        "--parts", "open", "--max-new-tokens", "4", "--compare", "steered", "--expert-prompt", "x" * 2000 + "{prompt}"
    )
    assert "too long for a role" not in short
    assert f"{NUM_QUESTIONS} too long for a role" in long


def test_gsm8k_and_alpacaeval(plan: Plan, tmp_path: Path) -> None:
    """Other tasks plan as well: their prompts are those of the run."""
    gsm8k = tmp_path / "test.jsonl"
    gsm8k.write_text(json.dumps({"question": "How many?", "answer": "so\n#### 4"}) + "\n", encoding="utf-8")
    assert "Answer the following question." in plan("--data", str(gsm8k), task="gsm8k")
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(
        json.dumps([{"instruction": "Name a colour.", "dataset": "made", "output": "Red."}]), encoding="utf-8"
    )
    assert "Name a colour." in plan("--data", str(alpaca), task="alpacaeval")


def test_a_run_needs_weights(empty: dict[str, Path], questions_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same folders are refused by the run itself."""
    roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(empty[role]))]
    assert main(["truthfulqa", *roles, "--data", str(questions_csv)]) == 2
    assert "has no weights" in capsys.readouterr().err


def test_what_a_plan_refuses(plan: Plan, empty: dict[str, Path], tmp_path: Path) -> None:
    """Another vocabulary, a judge that does not answer and a folder that is a file end with one sentence."""
    other = tmp_path / "other"
    shutil.copytree(empty["expert"], other)
    tiny.word_tokenizer().save_pretrained(other)
    assert "do not share token ids" in plan("--expert", str(other), code=2)
    assert "no judge answers" in plan("--judge-url", "http://127.0.0.1:9/v1", code=2)
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in plan("--output", str(file), code=2)


def test_the_bundled_trio_needs_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """Without models there is nothing to plan for."""
    assert main(["truthfulqa", "--dry-run"]) == 2
    assert "--dry-run needs the models" in capsys.readouterr().err


def test_the_documented_commands(
    empty: dict[str, Path], questions_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of docs/runs.md that names models is planned with only names of models and data changed."""
    (tmp_path / "prompts").mkdir()
    for name in ("hate_a.txt", "neutral_a.txt"):
        (tmp_path / "prompts" / name).write_text("They said that\\n- people are\n", encoding="utf-8")
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "How many?", "answer": "#### 4"}) + "\n")
    alpaca = [{"instruction": "Name one.", "dataset": "made", "output": "Red."}]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca), encoding="utf-8")
    data = {
        "truthfulqa": questions_csv,
        "gsm8k": tmp_path / "gsm8k.jsonl",
        "toxigen": tmp_path / "prompts",
        "alpacaeval": tmp_path / "alpaca.json",
    }
    roles = " ".join(f"--{role} {empty[role]}" for role in ("base", "expert", "anti"))
    block = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8").partition("```bash")[2].partition("```")[0]
    lines = [line for line in block.replace("\\\n", " ").splitlines() if "$MODELS" in line and "bench" in line]
    assert {line.split()[2] for line in lines} == set(data)
    for line in lines:
        task = line.split()[2]
        columns = f"--compare base,expert,steered,tuned={empty['tuned']}"
        given = line.replace("$MODELS", roles).replace("$COLUMNS", columns)
        words = shlex.split(re.sub(r"--classifier \S+", "", re.sub(r"--data \S+", f"--data {data[task]}", given)))
        output = words.index("--output") + 1
        words[output] = str(tmp_path / words[output])
        assert main([*words[2:], "--dry-run"]) == 0, capsys.readouterr().err
        assert "steered  " in capsys.readouterr().out
