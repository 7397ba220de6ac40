"""MC1, MC2 and MC3: by hand, from both forms of the data, the same whatever the batch, and as lm-evaluation-harness."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tasks.truthfulqa_mc import McQuestion, mc_scores, read_mc_questions
from proxytune.errors import InputError
from tests.benchmarks.conftest import NUM_QUESTIONS, Bench

QUESTION = McQuestion(question="?", best="a", true=("a", "b"), false=("c", "d"))


@pytest.mark.parametrize(
    ("logprobs", "mc1", "mc3"),
    [
        ((-1, -5, -2, -3), 1.0, 0.5),
        ((-2, -1, -2, -3), 0.0, 0.5),
        ((-4, -5, -2, -3), 0.0, 0.0),
        ((-1, -1, -2, -2), 1.0, 1.0),
    ],
)
def test_scores_by_hand(logprobs: tuple[float, ...], mc1: float, mc3: float) -> None:
    """MC1 and MC3 want strictly more than the best false answer (second case: a tie is a miss); MC2 is the mass."""
    scores = mc_scores(QUESTION, dict(zip("abcd", logprobs, strict=True)))
    masses = [math.exp(value) for value in logprobs]
    assert (scores["MC1"], scores["MC3"]) == (mc1, mc3)
    assert scores["MC2"] == pytest.approx(sum(masses[:2]) / sum(masses))


def test_impossible_and_tiny_probabilities() -> None:
    """Sums of hundreds of nats neither vanish nor overflow, and no answer possible is a share of nothing: 0."""
    low = mc_scores(QUESTION, {"a": -2000.0, "b": -2001.0, "c": -2000.0, "d": -math.inf})
    assert low["MC2"] == pytest.approx((1 + math.exp(-1)) / (2 + math.exp(-1)))
    none = mc_scores(QUESTION, dict.fromkeys("abcd", -math.inf))
    assert none == {"MC1": 0.0, "MC2": 0.0, "MC3": 0.0}


def test_repeated_answers_count_once(questions_csv: Path) -> None:
    """A cell that repeats an answer gives it once, every answer ends in a full stop, and the order mark is no text."""
    questions = read_mc_questions(questions_csv)
    assert len(questions) == NUM_QUESTIONS
    assert questions[3].true == ("It is 3.", "Nobody knows.")
    assert questions[0] == McQuestion(
        question="What is 0 and none?",
        best="It is 0.",
        true=("It is 0.", "Nobody knows."),
        false=("It is 2.",),
        category="Counting",
    )


def test_both_forms_of_the_real_data_agree(data: Path) -> None:
    """CSV and mc_task.json give the same 817 questions but for two, where "Unknown." is both true and false."""
    by_csv, by_json = (
        {question.question: question for question in read_mc_questions(data / "truthfulqa" / name)}
        for name in ("TruthfulQA.csv.gz", "mc_task.json.gz")
    )
    assert len(by_csv) == 817
    assert by_csv.keys() == by_json.keys()
    different = []
    for text, one in by_csv.items():
        other = by_json[text]
        assert one.best == other.best
        if (set(one.true), set(one.false)) != (set(other.true), set(other.false)):
            different.append(text)
            assert set(one.true) & set(one.false) == {"Unknown."}
            assert (set(one.true) - set(other.true), set(one.false)) == ({"Unknown."}, set(other.false))
    assert sorted(different) == ["How many people have absolute pitch?", "What proportion of Canadians are straight?"]


def test_chance_is_the_published_one(data: Path) -> None:
    """The share of best answers among best and false ones is the benchmark's random MC1."""
    questions = read_mc_questions(data / "truthfulqa" / "TruthfulQA.csv.gz")
    chance = sum(1 / (1 + len(question.false)) for question in questions) / len(questions)
    assert chance == pytest.approx(0.2225, abs=2e-3)


def test_batches_change_nothing(bench: Bench, tmp_path: Path) -> None:
    """Batch 1 and batch 32 differ by less than 1e-4 nats and flip no verdict."""
    rows = {}
    for size in ("1", "32"):
        bench(tmp_path / size, "--parts", "mc", "--batch-size", size, "--chunk-size", "7", "--compare", "base,steered")
        lines = (tmp_path / size / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        rows[size] = [json.loads(line) for line in lines]
    for one, other in zip(rows["1"], rows["32"], strict=True):
        assert (one["MC1"], one["MC3"]) == (other["MC1"], other["MC3"])
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


def test_prompts_that_are_too_long(
    readers: dict[str, Path], questions_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt beyond the context is an error with the way out; --truncate cuts its start and counts such answers."""
    from benchmarks.cli import main

    short = tmp_path / "short"
    _shorten(readers["base"], short, context=590)
    arguments = ["truthfulqa", "--base", str(short), "--data", str(questions_csv), "--parts", "mc", "--limit", "2"]
    assert main(arguments) == 2
    assert "--truncate" in capsys.readouterr().err
    assert main([*arguments, "--truncate", "--output", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["num_truncated"] for line in lines] == [3, 4]


def test_unreadable_data_are_an_input_error(tmp_path: Path) -> None:
    """A file of another form is refused with the names of those that are taken."""
    path = tmp_path / "mc_task.json"
    path.write_text('[{"question": "?"}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"mc_task\.json"):
        read_mc_questions(path)


def test_scores_equal_the_harness(readers: dict[str, Path], questions_csv: Path, bench: Bench, tmp_path: Path) -> None:
    """On the same model and questions MC1, MC2 and every log-probability equal lm-evaluation-harness's."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'proxytune[bench]'")
    metrics = bench(tmp_path / "run", "--compare", "base", "--parts", "mc", "--dtype", "float32")
    mine = {found["measure"]: found["value"] for found in metrics["results"]}
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    theirs = _harness(readers["base"], read_mc_questions(questions_csv), tmp_path / "harness")
    for row, sample in zip(rows, theirs["samples"]["truthfulqa_mc2"], strict=True):
        assert sample["doc"]["question"] == row["Question"]
        found = [result[0] for result in sample["filtered_resps"]]
        assert [row["logprobs"][answer] for answer in [*row["true"], *row["false"]]] == pytest.approx(found, abs=1e-4)
    assert mine["MC1"] == pytest.approx(theirs["results"]["truthfulqa_mc1"]["acc,none"])
    assert mine["MC2"] == pytest.approx(theirs["results"]["truthfulqa_mc2"]["acc,none"], abs=1e-5)


def _harness(model: Path, questions: list[McQuestion], folder: Path) -> Any:
    """Return what lm-evaluation-harness finds for these questions, read from a local file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps(_doc(question)) + "\n" for question in questions))
    built_in = Path(lm_eval.__file__).parent / "tasks/truthfulqa"
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        (folder / f"{name}.yaml").write_text(
            f"include: {built_in}/{name}.yaml\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    validation: {folder}/data.jsonl\n  cache_dir: {folder}/cache\n"
        )
    return lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=4, softmax_dtype="float32"),
        tasks=["truthfulqa_mc1", "truthfulqa_mc2"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


def _doc(question: McQuestion) -> dict[str, Any]:
    true = [question.best, *(answer for answer in question.true if answer != question.best)]
    return {
        "question": question.question,
        "mc1_targets": {"choices": [question.best, *question.false], "labels": [1, *[0] * len(question.false)]},
        "mc2_targets": {
            "choices": [*true, *question.false],
            "labels": [1] * len(true) + [0] * len(question.false),
        },
    }


def _shorten(model: Path, folder: Path, *, context: int) -> None:
    """Copy a model folder, with another context in its config."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}), encoding="utf-8")
