"""Judges that fail, stall, talk nonsense or repeat the key, and judging that is killed: no verdict is made up."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.run import Configuration, RunFolder
from benchmarks.tasks.alpacaeval.annotations import read_annotations
from benchmarks.tasks.alpacaeval.judge import Judge
from proxytune.errors import OptionError
from tests.benchmarks.length_judge import LengthJudge, chat_answer, length_judge, win_by_length

pytestmark = pytest.mark.skipif(
    find_spec("alpaca_eval") is None, reason="alpaca-eval is not installed: proxytune[bench]"
)

_KEY = "sk-made-0123456789"
_JUDGED = "judged/weighted-gpt4_1106_preview-length-rule"
_DEADLINE_S = 120.0


@pytest.fixture
def judge() -> Iterator[LengthJudge]:
    """A judge on loopback."""
    with length_judge() as server:
        yield server


def make_run(folder: Path, outputs: list[str], **changed: Any) -> Path:
    """Write a run with these answers to the instructions `0`, `1`, … and a reference of ten characters each."""
    configuration = Configuration(
        task="alpacaeval", settings={"seed": 0}, columns=["steered"], sizes={"alpacaeval": len(outputs)}, chunk_size=1
    )
    run = RunFolder.open(folder / "run", configuration, is_resumed=False)
    with run.predictions() as predictions:
        for index, output in enumerate(outputs):
            own = {"dataset": "made", "instruction": str(index), "output": output, "num_characters": len(output)}
            predictions.append([{"column": "steered", "part": "alpacaeval", "index": index, **own}])
    reference = [
        {"dataset": "made", "instruction": str(index), "output": "r" * 10, "generator": "gpt4_1106_preview"} | changed
        for index in range(len(outputs))
    ]
    (folder / "reference.json").write_text(json.dumps(reference), encoding="utf-8")
    return folder / "run"


def arguments(run: Path, judge: LengthJudge, *options: str) -> list[str]:
    """Return the arguments of the judging command."""
    server = ["--judge-url", judge.url, "--judge-model", "length-rule"]
    return ["alpacaeval-judge", str(run), "--reference", str(run.parent / "reference.json"), *server, *options]


def verdicts(run: Path) -> dict[int, float | None]:
    """Return the preference of each row that has a line."""
    return {index: line["preference"] for (_, index), line in read_annotations(run / _JUDGED).items()}


def test_what_fails_is_missing(tmp_path: Path, judge: LengthJudge, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors, garbage, nonsense and stalls end as missing with a reason, after bounded tries; the rest counts."""
    trouble = {
        "1": 500,
        "2": 401,
        "3": "<html>not JSON",
        "4": json.dumps(chat_answer("as a language model")),
        "5": json.dumps({"choices": None}),
        "6": "stall",
        "7": "flaky",
        "8": json.dumps(chat_answer("m", {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": []}]})),
    }
    judge.trouble = dict(trouble)
    run = make_run(tmp_path, ["o" * 20] * 8 + ["short", "ends <|im_end|> here"])
    options = ("--max-attempts", "2", "--judge-timeout", "1.5", "--max-concurrency", "10")
    assert main(arguments(run, judge, *options)) == 0
    found = verdicts(run)
    assert [index for index, preference in found.items() if preference is not None] in ([0, 7], [7, 0])
    assert found[0] == found[7] == pytest.approx(1.9)
    lines = read_annotations(run / _JUDGED)
    assert all(lines["steered", index]["error"] for index in (1, 2, 3, 4, 5, 6, 8, 9))
    assert "500" in lines["steered", 1]["error"]
    assert "timed out" in lines["steered", 6]["error"].lower()
    assert "<|im_end|>" in lines["steered", 9]["error"]
    tries = {"1": 2, "2": 1, "6": 2, "7": 2, "9": 0}
    assert {instruction: judge.asked[instruction] for instruction in tries} == tries
    told = capsys.readouterr().out
    assert "2 of 10 judged, 8 missing" in told
    metrics = json.loads((run / _JUDGED / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["results"][0]["value"] == pytest.approx(0.9)

    judge.trouble = {}
    num_asked = judge.asked.total()
    assert main(arguments(run, judge, *options)) == 0
    assert judge.asked.total() == num_asked
    assert main(arguments(run, judge, *options, "--retry-missing")) == 0
    assert judge.asked.total() == num_asked + 7
    assert {index for index, preference in verdicts(run).items() if preference is None} == {9}


def test_the_key_is_written_nowhere(
    tmp_path: Path, judge: LengthJudge, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server gets the key of the named variable; no file and no line of output holds it, even if it is repeated."""
    monkeypatch.setenv("JUDGE_KEY", _KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    run = make_run(tmp_path, ["long enough to win", "s"])
    echo = chat_answer(f"m {_KEY}", json.loads(json.dumps({"content": [{"token": _KEY, "logprob": 0.0}]})))
    echo["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [
        {"token": "m", "logprob": -0.1},
        {"token": _KEY, "logprob": -5.0},
    ]
    judge.trouble = {"0": json.dumps(echo), "1": 400}
    assert main(arguments(run, judge, "--judge-key-env", "JUDGE_KEY", "--max-attempts", "1")) == 0
    told = capfd.readouterr()
    assert judge.keys == {f"Bearer {_KEY}"}
    assert verdicts(run)[0] is not None
    assert "[key]" in read_annotations(run / _JUDGED)["steered", 1]["error"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path for path in files if _KEY.encode() in path.read_bytes()]
    assert _KEY not in told.out + told.err


@pytest.mark.slow
def test_killed_judging_goes_on(tmp_path: Path, judge: LengthJudge) -> None:
    """After a SIGKILL the judge is left alone, no verdict is lost or asked for twice, and the rest is judged."""
    outputs = ["o" * (number % 21) for number in range(30)]
    run = make_run(tmp_path, outputs)
    judge.delay_s = 0.15
    options = ("--max-concurrency", "2")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.cli"])
    process = context.Process(target=main, args=(arguments(run, judge, *options),))
    process.start()
    wait_until(lambda: not process.is_alive() or len(verdicts(run)) >= 4)
    assert process.is_alive()
    children = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.join()
    assert children
    wait_until(lambda: not any(is_running(child) for child in children))
    kept = verdicts(run)
    assert 4 <= len(kept) < 30
    before = dict(judge.asked)
    judge.delay_s = 0.0
    assert main(arguments(run, judge, *options)) == 0
    found = verdicts(run)
    assert {index: found[index] for index in kept} == kept
    assert all(judge.asked[str(index)] == before[str(index)] for index in kept if len(outputs[index]) != 10)
    wins = {index: preference - 1 for index, preference in found.items() if preference is not None}
    assert wins == pytest.approx({index: win_by_length(output, "r" * 10) for index, output in enumerate(outputs)})


def test_another_judging_is_refused(tmp_path: Path, judge: LengthJudge, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of verdicts takes only its own judge and reference; the refusal names what differs."""
    run = make_run(tmp_path, ["longer than ten", "s"])
    options = ("--output", str(tmp_path / "judged"))
    assert main(arguments(run, judge, *options)) == 0
    asked = judge.asked.total()
    assert main([*arguments(run, judge, *options), "--judge-form", "ranking"]) == 2
    assert 'judge.form is "weighted" there and "ranking" here' in capsys.readouterr().err
    (tmp_path / "reference.json").write_text(
        (tmp_path / "reference.json").read_text(encoding="utf-8").replace("rrr", "sss"), encoding="utf-8"
    )
    assert main(arguments(run, judge, *options)) == 2
    assert "reference.sha256" in capsys.readouterr().err
    assert judge.asked.total() == asked


def test_instructions_must_be_the_references(
    tmp_path: Path, judge: LengthJudge, capsys: pytest.CaptureFixture[str]
) -> None:
    """An instruction that differs by one blank is refused before anyone is asked."""
    run = make_run(tmp_path, ["an answer"], instruction="0 ")
    assert main(arguments(run, judge)) == 2
    assert "no output for the instruction '0'" in capsys.readouterr().err
    assert judge.asked.total() == 0


def test_a_package_that_cannot_run_is_an_error(
    tmp_path: Path, judge: LengthJudge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If alpaca-eval's process ends early the command fails with its last words, and no row is called missing."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "alpaca_eval.py").write_text("raise ImportError('no pkg_resources')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    run = make_run(tmp_path, ["an answer"])
    assert main(arguments(run, judge)) == 2
    assert "0 of 1 verdicts: ImportError: no pkg_resources" in capsys.readouterr().err
    assert verdicts(run) == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "localhost:8000"},
        {"url": "http://me:secret@localhost/v1"},
        {"form": "coin"},
        {"max_attempts": 0},
        {"timeout_s": 0.0},
        {"key_env": "A_VARIABLE_THAT_IS_NOT_SET"},
    ],
)
def test_judges_are_checked(changed: dict[str, Any]) -> None:
    """An address that is none or holds a secret, an unknown form, no tries, a missing key: each is refused."""
    with pytest.raises(OptionError):
        Judge(**{"url": "http://localhost:8000/v1", "model": "judge", **changed})


def wait_until(is_so: Any) -> None:
    """Return when it is so, or fail."""
    ends = time.monotonic() + _DEADLINE_S
    while not is_so():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
