"""The harness's tasks without a network: the harness's own figures, and runs that resume, merge and share a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from tests.benchmarks.conftest import predictions, results

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'proxytune[bench]'")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks.tasks.lm_eval.data import arc_rows, mmlu_rows, truthfulqa_rows, write_task
from benchmarks.tasks.lm_eval.model import ProxyTuneLM
from benchmarks.tasks.lm_eval.tasks import (
    HarnessMeasures,
    index_for,
    is_mean,
    load_documents,
    select,
    settings_of,
)
from proxytune import ProxyGenerator
from proxytune.errors import InputError, OptionError

Run = Callable[..., dict[str, Any]]

TASKS = ["arc_challenge", "hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", "mmlu_humanities"]
BUILT_IN = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture
def run(data: Path, readers: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the function that runs `bench lm-eval` on the tiny trio and gives what metrics.json holds."""
    roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(readers[role]))]

    def call(output: Path, *options: str, models: list[str] = roles) -> dict[str, Any]:
        where = ["--data-dir", str(data), "--output", str(output), "--dtype", "float32"]
        code = main(["lm-eval", *models, *where, *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        return found

    return call


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in predictions(folder).decode().splitlines()]


def _harness(model: Any, tasks: list[str], data: Path, folder: Path, **options: Any) -> Any:
    """Return what the harness's own evaluation finds with the same files."""
    folder.mkdir()
    for leaf in (leaf for selection in select(tasks) for leaf in selection.leaves):
        shots = options.get("num_fewshot") or settings_of(leaf).get("num_fewshot") or 0
        write_task(leaf, index_for([leaf])[leaf].yaml_path, settings_of(leaf), data, folder, num_fewshot=shots)
    manager = TaskManager(include_path=[str(BUILT_IN / "mmlu/default"), str(folder)], include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)


@pytest.mark.slow
def test_figures_are_the_harness_s_own(run: Run, data: Path, tmp_path: Path) -> None:
    """On stories260K every verdict, response and mean of six tasks equals the harness's with its own HFLM."""
    folder = data / "models/stories260K/hf"
    metrics = run(tmp_path / "run", "--tasks", ",".join(TASKS), "--limit", "2", models=["--base", str(folder)])
    hflm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, softmax_dtype="float32")
    theirs = _harness(hflm, TASKS, data, tmp_path / "tasks", limit=2)
    found = results(metrics)
    for part, measure, key in (
        ("arc_challenge", "acc", "acc,none"),
        ("arc_challenge", "acc_norm", "acc_norm,none"),
        ("hellaswag", "acc_norm", "acc_norm,none"),
        ("truthfulqa_mc1", "acc", "acc,none"),
        ("truthfulqa_mc2", "acc", "acc,none"),
        ("gsm8k", "exact_match (flexible-extract)", "exact_match,flexible-extract"),
        ("mmlu_humanities", "acc", "acc,none"),
    ):
        assert found[part, measure, "base"]["value"] == pytest.approx(theirs["results"][part][key], abs=1e-5), part
    assert found["mmlu_humanities", "acc", "base"]["n"] == 2 * 13
    samples = {(name, sample["doc_id"]): sample for name in theirs["samples"] for sample in theirs["samples"][name]}
    rows = _rows(tmp_path / "run")
    assert len(rows) == len(samples) == 2 * (5 + 13)
    for row in rows:
        sample = samples[row["task"], row["doc_id"]]
        assert row["prompt_sha256"] == hashlib.sha256(sample["arguments"][0][0].encode()).hexdigest()
        if row["task"] == "gsm8k":
            assert row["responses"] == sample["resps"]
        else:
            mine = [response[0][0] for response in row["responses"]]
            assert mine == pytest.approx([response[0][0] for response in sample["resps"]], abs=2e-4)


def test_the_model_object_serves_the_harness(run: Run, data: Path, readers: dict[str, Path], tmp_path: Path) -> None:
    """The harness, given the steered model as an object, finds what `bench` finds, with examples before questions."""
    tasks = ["arc_challenge", "mmlu_formal_logic"]
    options = ("--tasks", ",".join(tasks), "--limit", "2", "--num-fewshot", "1", "--alpha", "0.5")
    metrics = run(tmp_path / "run", *options, "--compare", "steered")
    roles = {role: str(readers[role]) for role in ("base", "expert", "anti")}
    lm = ProxyTuneLM(ProxyGenerator(**roles, dtype="float32"), alpha=0.5)
    theirs = _harness(lm, tasks, data, tmp_path / "tasks", limit=2, num_fewshot=1)
    for task in tasks:
        assert results(metrics)[task, "acc", "steered"]["value"] == theirs["results"][task]["acc,none"]
    rows = {(row["task"], row["doc_id"]): row for row in _rows(tmp_path / "run")}
    for task in tasks:
        for sample in theirs["samples"][task]:
            row = rows[task, sample["doc_id"]]
            assert row["prompt_sha256"] == hashlib.sha256(sample["arguments"][0][0].encode()).hexdigest()
            mine = [response[0][0] for response in row["responses"]]
            assert mine == pytest.approx([response[0][0] for response in sample["resps"]], abs=1e-4)


def test_runs_resume_merge_and_share_a_cache(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut run goes on to the same bytes; shards merge to them; another run takes every answer from the cache."""
    cache = tmp_path / "cache"
    options = ("--tasks", "truthfulqa_mc1,arc_challenge", "--limit", "2", "--chunk-size", "1", "--batch-size", "8")
    options += ("--compare", "base,steered", "--response-cache", str(cache))
    expected = run(tmp_path / "whole", *options)
    data = predictions(tmp_path / "whole")
    assert len(list(cache.glob("*.db"))) == 2  # one for each column's models
    for number in (1, 2):
        run(tmp_path / f"shard{number}", *options, "--shard", f"{number}/2")
    assert main(["merge", str(tmp_path / "merged"), str(tmp_path / "shard1"), str(tmp_path / "shard2")]) == 0
    capsys.readouterr()
    assert predictions(tmp_path / "merged") == data

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(ProxyGenerator, "score_as_done", refuse)
    (tmp_path / "whole" / "predictions.jsonl").write_bytes(data[: len(data) // 2])
    assert run(tmp_path / "whole", *options, "--resume") == expected
    assert predictions(tmp_path / "whole") == data
    with pytest.raises(AssertionError, match="a model was asked"):
        run(tmp_path / "other", *options, "--alpha", "0.3")


def test_examples_do_not_depend_on_the_share(data: Path) -> None:
    """The first questions have the same prompts whether they are built alone or among more of them."""
    few, many = (
        load_documents(select(["gsm8k"]), data_dir=data, num_fewshot=3, limit=limit)["gsm8k"] for limit in (2, 5)
    )
    assert [document.requests[0].args for document in few] == [document.requests[0].args for document in many[:2]]
    assert few[0].requests[0].args[0].count("Question:") == 4
    assert few[0].requests[0].args[0] != few[1].requests[0].args[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tasks", "truthfulqa_gen"), "has no place"),
        (("--tasks", "arc_easy"), "ARC-Easy-test"),
        (("--tasks", "hellaswag", "--num-fewshot", "5"), "hellaswag_train"),
        (("--limit", "2"), "--tasks is missing"),
        (("--tasks", "ai2_arc", "--limit", "1"), "ARC-Easy-test"),
        (("--tasks", "gsm8k", "--limit", "0"), "limit is 0"),
    ],
)
def test_what_cannot_be_run_is_refused(
    data: Path, options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks without local data, missing files and options out of range end with one sentence before models load."""
    assert main(["lm-eval", "--base", "no-such-model", "--data-dir", str(data), *options]) == 2
    assert reason in capsys.readouterr().err


def test_groups_that_count_alike_are_one_line() -> None:
    """MMLU is one line over its 57 subjects and its figure a share; a tag is as many lines as it has tasks."""
    [mmlu, *arc] = select(["mmlu", "ai2_arc"])
    assert (mmlu.name, len(mmlu.leaves)) == ("mmlu", 57)
    assert [selection.name for selection in arc] == ["arc_challenge", "arc_easy"]
    assert [(measure.name, measure.is_share) for measure in HarnessMeasures()["mmlu"]] == [("acc", True)]
    assert [measure.is_share for measure in HarnessMeasures()["truthfulqa_mc2"]] == [False]
    assert [measure.name for measure in HarnessMeasures()["gsm8k"]] == [
        "exact_match (strict-match)",
        "exact_match (flexible-extract)",
    ]


def test_files_become_the_hub_s_rows(tmp_path: Path) -> None:
    """Both forms of ARC, MMLU with letters or numbers, and TruthfulQA's marks are read into the hub's fields."""
    arc = {"id": "1", "question": {"stem": "Why?", "choices": [{"text": "a", "label": "A"}]}, "answerKey": "A"}
    hub = {"id": "1", "question": "Why?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
    (tmp_path / "arc.jsonl").write_text(f"{json.dumps(arc)}\n{json.dumps({**hub, 'response': '?'})}\n")
    assert arc_rows(tmp_path / "arc.jsonl") == [hub, hub]
    (tmp_path / "world_religions_dev.csv").write_text('"Who, then?",w,x,y,z,C\n')
    (tmp_path / "world_religions_test.csv").write_text(
        "question,choice0,choice1,choice2,choice3,answer\nWho?,w,x,y,z,2\n"
    )
    wanted = {"subject": "world_religions", "choices": ["w", "x", "y", "z"], "answer": 2}
    assert mmlu_rows(tmp_path / "world_religions_dev.csv") == [{"question": "Who, then?", **wanted}]
    assert mmlu_rows(tmp_path / "world_religions_test.csv") == [{"question": "Who?", **wanted}]
    (tmp_path / "world_religions_test.csv").write_text("Who?,w,x,y,E\n")
    with pytest.raises(InputError, match="row 1"):
        mmlu_rows(tmp_path / "world_religions_test.csv")
    row = {"question": "?", "mc1_targets": {"no": 0, "yes": 1}, "mc2_targets": {"yes": 1, "no": 0}}
    (tmp_path / "mc_task.json").write_text(json.dumps([row]))
    [found] = truthfulqa_rows(tmp_path / "mc_task.json")
    assert found["mc1_targets"] == found["mc2_targets"] == {"choices": ["yes", "no"], "labels": [1, 0]}


def test_a_negative_number_of_examples_is_refused() -> None:
    """The number of examples is checked before anything is read."""
    with pytest.raises(OptionError, match="num_fewshot is -1"):
        load_documents(select(["gsm8k"]), data_dir=None, num_fewshot=-1, limit=None)


def test_only_means_are_compared() -> None:
    """A perplexity is no mean over questions, said or unsaid; an accuracy is."""
    assert [is_mean({"metric": name}) for name in ("acc", "exact_match", "word_perplexity")] == [True, True, False]
    assert [is_mean({"metric": "acc", "aggregation": name}) for name in ("mean", "median")] == [True, False]
