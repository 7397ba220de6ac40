"""`bench score`: its table, its JSON, its refusals."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring.command import add_arguments, run
from benchmarks.scoring.registry import SCORERS
from proxytune.errors import OptionError

_LETTERS = [
    {"Question": "a", "mc_output": " A", "mc_answer_idx": "A"},
    {"Question": "b", "mc_output": " what", "mc_answer_idx": "B"},
]
_JUDGED = {"generator_1": "reference", "generator_2": "model", "output_2": "x", "instruction": "i", "preference": 2}


def _run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON names the file and its hash, and each metric has value, n and interval."""
    path = _write(tmp_path / "rows.jsonl", _LETTERS)
    assert _run("truthfulqa-letter", "--predictions", path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (result["task"], result["n"], result["predictions"]) == ("truthfulqa-letter", 2, str(path))
    accuracy = result["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["interval"]) == (1.0, 1, "wilson")
    assert 0 < accuracy["low"] < accuracy["high"] == 1.0
    assert result["counts"]["num_unparsable"] == 1


def test_table_says_what_the_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows the values, the intervals, the counts and the notes."""
    assert _run("truthfulqa-letter", "--predictions", _write(tmp_path / "rows.jsonl", _LETTERS)) == 0
    out = capsys.readouterr().out
    assert "accuracy_of_all       0.5000  [0.0945, 0.9055] 95 % wilson  n=2" in out
    assert "num_unparsable        1" in out
    assert "note: accuracy leaves unparsable rows out" in out


def test_one_row_is_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single row has no standard error: null, not NaN."""
    path = _write(tmp_path / "rows.jsonl", [_JUDGED])
    assert _run("alpacaeval", "--predictions", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["win_rate"]["standard_error"] is None


def test_length_control_needs_both_files(tmp_path: Path) -> None:
    """Weights without difficulties are refused, naming both options."""
    path = _write(tmp_path / "rows.jsonl", [_JUDGED])
    with pytest.raises(OptionError, match=r"--glm-weights and --instruction-difficulty"):
        _run("alpacaeval", "--predictions", path, "--glm-weights", path)


def test_an_unknown_task_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A task that does not exist ends with status 2 and the tasks there are."""
    with pytest.raises(SystemExit) as refused:
        _run("mmlu", "--predictions", "x.jsonl")
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in SCORERS)


def test_published_files_score_from_the_command(alpaca_eval: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command gives Vicuna 13B its leaderboard rates, with the length-controlled form in a note."""
    meta = "metrics__weights__weighted_alpaca_eval_gpt4_turbo__length_controlled_v1__baseline_gpt4_1106_preview.csv"
    _run(
        *("alpacaeval", "--json", "--predictions", alpaca_eval / "annotations/vicuna-13b-v1.5.weighted.glm.json.gz"),
        *("--glm-weights", alpaca_eval / "meta" / meta),
        *("--instruction-difficulty", alpaca_eval / "instruction_difficulty.recovered.csv"),
        *("--reference-outputs", alpaca_eval / "gpt4_1106_preview.model_outputs.json.gz"),
    )
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["win_rate"]["value"] == pytest.approx(6.722122014857143, abs=1e-9)
    assert result["metrics"]["length_controlled_win_rate"]["value"] == pytest.approx(10.484438298504218, abs=1e-8)
    assert any("nothing refitted" in note for note in result["notes"])
