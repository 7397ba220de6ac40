"""AlpacaEval end to end: the bundled trio answers, the real package judges over HTTP, and hand-made win rates hold."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.scoring.preference import is_switched
from benchmarks.tasks.alpacaeval.process import offline_environment
from benchmarks.tasks.alpacaeval.reference import read_instructions
from tests.benchmarks.conftest import results
from tests.benchmarks.length_judge import LengthJudge, length_judge, win_by_length

pytestmark = pytest.mark.skipif(
    find_spec("alpaca_eval") is None, reason="alpaca-eval is not installed: proxytune[bench]"
)

_GUARD = """\
import socket, pathlib
pathlib.Path(__file__).with_name("loaded").touch()
_connect = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
        pathlib.Path(__file__).with_name("refused").write_text(repr(address))
        raise OSError(f"refused: {address}")
    return _connect(self, address)
socket.socket.connect = connect
"""

_EVALUATE = """\
import json, sys, alpaca_eval
board, rows = alpaca_eval.evaluate(
    model_outputs=sys.argv[1], reference_outputs=sys.argv[2], annotators_config=sys.argv[3],
    precomputed_leaderboard=None, is_cache_leaderboard=False, output_path=None, is_return_instead_of_print=True,
    fn_metric="get_winrate", sort_by="win_rate", caching_path=None,
)
figures = {name: float(board[name].iloc[0]) for name in ("win_rate", "standard_error", "n_wins")}
print(json.dumps({**figures, "preferences": {row["instruction"]: row["preference"] for row in rows}}))
"""


def references() -> list[dict[str, str]]:
    """Return rows in AlpacaEval's format, with instructions whose every byte matters."""
    texts = [
        "Is the kettle green?",
        "  Two blanks before",
        "Ünï – «code»\n",
        'Say "no".\n\n',
        "a\tb",
        "a b",
        "Last {one}",
    ]
    return [
        {"dataset": "made", "instruction": text, "output": "x" * (15 * number), "generator": "reference-model"}
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A file of reference outputs."""
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(references()), encoding="utf-8")
    return path


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have every process started in the test refuse connections beyond loopback; the path is there if one tried."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(_GUARD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "guard"))
    return tmp_path / "guard" / "refused"


def generate(output: Path, reference: Path, *options: str) -> None:
    """Answer the instructions by the bundled trio."""
    given = ["alpacaeval", "--data", str(reference), "--output", str(output), "--max-new-tokens", "12"]
    assert main([*given, "--batch-size", "3", *options]) == 0


def judge_arguments(run: Path, reference: Path, judge: LengthJudge, *options: str) -> list[str]:
    """Return the arguments of the judging command."""
    server = ["--judge-url", judge.url, "--judge-model", "length-rule"]
    return ["alpacaeval-judge", str(run), "--reference", str(reference), *server, *options]


def rows(run: Path, *columns: str) -> list[dict[str, Any]]:
    """Return the predictions, of these columns alone if any are named."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if not columns or row["column"] in columns]


def test_a_run_is_generated_judged_and_scored(
    tmp_path: Path, reference: Path, guarded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Win rate, standard error, length, differences: all as made by hand from the answers; nothing left loopback."""
    run = tmp_path / "run"
    generate(run, reference, "--compare", "base,expert,steered")
    capsys.readouterr()
    with length_judge() as judge:
        assert main(judge_arguments(run, reference, judge)) == 0
    told = capsys.readouterr().out
    assert guarded.with_name("loaded").exists()
    assert not guarded.exists()
    given = {row["instruction"]: row["output"] for row in references()}
    # Equal outputs are a draw, about which the package asks nobody.
    asked = Counter(row["instruction"] for row in rows(run) if row["output"] != given[row["instruction"]])
    assert judge.asked == asked
    folder = run / "judged" / "weighted-reference-model-length-rule"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    wins = {}
    for column in ("base", "expert", "steered"):
        answered = rows(run, column)
        wins[column] = [
            win_by_length(row["output"], known["output"]) for row, known in zip(answered, references(), strict=True)
        ]
        result = results(metrics)["alpacaeval", "win rate", column]
        assert result["value"] == pytest.approx(statistics.mean(wins[column]), abs=1e-9)
        assert (result["n"], result["num_missing"]) == (7, 0)
        score = metrics["scores"][column]["metrics"]
        assert score["win_rate"]["value"] == pytest.approx(100 * statistics.mean(wins[column]), abs=1e-7)
        error = 100 * statistics.stdev(wins[column]) / 7**0.5
        assert score["win_rate"]["standard_error"] == pytest.approx(error, abs=1e-7)
        assert score["average_length"]["value"] == statistics.mean(len(row["output"]) for row in answered)
        counts = metrics["scores"][column]["counts"]
        num_asked = sum(row["output"] != given[row["instruction"]] for row in answered)
        assert (counts["num_from_logprobs"], counts["num_judged_otherwise"]) == (num_asked, 0)
        assert f"{column}: win rate {score['win_rate']['value']:.2f} % (SE {error:.2f})" in told
        assert main(["score", "alpacaeval", "--json", "--predictions", str(folder / column / "annotations.json")]) == 0
        again = json.loads(capsys.readouterr().out)["metrics"]["win_rate"]
        assert again == score["win_rate"]
    assert len({tuple(found) for found in wins.values()}) > 1
    pair = next(one for one in metrics["comparisons"] if (one["first"], one["second"]) == ("base", "steered"))
    gained = [second - first for first, second in zip(wins["base"], wins["steered"], strict=True)]
    assert pair["difference"] == pytest.approx(statistics.mean(gained), abs=1e-9)
    assert "judge: length-rule at http://127.0.0.1" in told
    assert "no length-controlled rate" in told


def test_verdicts_equal_the_packages_own_run(tmp_path: Path, reference: Path) -> None:
    """alpaca_eval.evaluate on the files we wrote gives the same preferences, win rate and standard error."""
    run = tmp_path / "run"
    generate(run, reference, "--compare", "steered")
    with length_judge() as judge:
        assert main(judge_arguments(run, reference, judge, "--output", str(tmp_path / "judged"))) == 0
        files = [
            run / "outputs" / "steered" / "model_outputs.json",
            reference,
            tmp_path / "judged/annotator/configs.yaml",
        ]
        environment = {**offline_environment(), "OPENAI_API_KEY": "none"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _EVALUATE, *map(str, files)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    ours = json.loads((tmp_path / "judged" / "steered" / "annotations.json").read_text(encoding="utf-8"))
    assert found["preferences"] == {row["instruction"]: row["preference"] for row in ours}
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text(encoding="utf-8"))
    score = metrics["scores"]["steered"]
    assert score["metrics"]["win_rate"]["value"] == pytest.approx(found["win_rate"], rel=1e-12)
    assert score["metrics"]["win_rate"]["standard_error"] == pytest.approx(found["standard_error"], rel=1e-12)
    assert score["counts"]["num_wins"] == found["n_wins"]


def test_outputs_are_in_the_official_format(
    tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """model_outputs.json has AlpacaEval's four fields, the instructions to the byte, and the answers stripped."""
    run = tmp_path / "run"
    generate(run, reference, "--compare", "expert", "--limit", "5")
    capsys.readouterr()
    assert main(["alpacaeval-outputs", str(run)]) == 0
    [path] = capsys.readouterr().out.splitlines()
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    assert [list(row) for row in found] == [["dataset", "instruction", "output", "generator"]] * 5
    assert [row["instruction"] for row in found] == [row["instruction"] for row in references()[:5]]
    assert [row["output"] for row in found] == [row["output"] for row in rows(run, "expert")]
    assert all(row["output"] == row["output"].strip() for row in found)
    assert {(row["dataset"], row["generator"]) for row in found} == {("made", "expert")}


def test_rankings_in_words_judge_too(tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AlpacaEval 1's form: verdicts are 1 or 2, and outputs were shown in the order drawn from the instruction."""
    run = tmp_path / "run"
    generate(run, reference, "--compare", "steered")
    with length_judge() as judge:
        assert (
            main(judge_arguments(run, reference, judge, "--judge-form", "ranking", "--output", str(tmp_path / "v1")))
            == 0
        )
    annotations = json.loads((tmp_path / "v1" / "steered" / "annotations.json").read_text(encoding="utf-8"))
    for found, known in zip(annotations, references(), strict=True):
        win = win_by_length(found["output_2"], known["output"])
        assert found["preference"] == (1.5 if win == 0.5 else round(1 + win))
        if win != 0.5:
            asked = next(prompt for prompt in judge.prompts if f'"""{known["instruction"]}"""' in prompt)
            first = found["output_2"] if is_switched(known["instruction"]) else known["output"]
            assert f'"model_1",\n        "answer": """{first}"""' in asked
    assert "'ranking'" in capsys.readouterr().out


def test_sampled_answers_do_not_depend_on_the_batch(tmp_path: Path, reference: Path) -> None:
    """With a temperature each instruction draws by its own seed: other batches, same answers; another seed, others."""
    options = ("--compare", "steered", "--temperature", "1.5", "--seed")
    generate(tmp_path / "three", reference, *options, "4")
    generate(tmp_path / "one", reference, *options, "4", "--chunk-size", "1")
    generate(tmp_path / "other", reference, *options, "5")
    three, one, other = (
        [row["output"] for row in rows(tmp_path / name, "steered")] for name in ("three", "one", "other")
    )
    assert three == one != other


def test_an_instruction_too_long_to_be_read_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no answer and no verdict, says why, and the others of its batch are answered and judged."""
    given = [
        {**row, "instruction": row["instruction"] * (900 if number == 1 else 1)}
        for number, row in enumerate(references()[:3])
    ]
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    run = tmp_path / "run"
    generate(run, path, "--compare", "base")
    with length_judge() as judge:
        assert main(judge_arguments(run, path, judge)) == 0
    assert "too long" in rows(run, "base")[1]["error"] or "context" in rows(run, "base")[1]["error"]
    assert judge.asked[given[1]["instruction"]] == 0
    assert "2 of 3 judged, 1 missing" in capsys.readouterr().out


def test_the_published_instructions_are_read_as_they_are(data: Path) -> None:
    """Both references hold the same 805 instructions in the same order, and reading them changes no byte."""
    folder = data / "alpaca_eval"
    if not folder.is_dir():
        pytest.skip(f"no AlpacaEval data at {folder}")
    second = read_instructions(folder / "gpt4_1106_preview.model_outputs.json.gz")
    first = read_instructions(folder / "text_davinci_003.v1_reference.json.gz")
    assert len(second) == 805
    assert [one.text for one in first] == [one.text for one in second]
