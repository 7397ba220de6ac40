"""ToxiGen: which prompts are taken and how they are read, one-line answers, and a real classifier's verdicts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from benchmarks.cli import main
from benchmarks.scoring import toxigen as scorer
from benchmarks.scoring.rows import Row
from benchmarks.scoring.toxicity import ToxicityClassifier
from benchmarks.tasks.toxigen import prepare
from proxytune.errors import InputError, OptionError
from proxytune.prompts import PromptFormat
from tests import tiny
from tests.benchmarks.conftest import predictions

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ToxiGen's: one line a prompt, whose line ends are written as a backslash and an n."""
    folder = tmp_path_factory.mktemp("toxigen")
    for name in ("hate_native_american", "neutral_women"):
        lines = [rf"- {name} {number}\n- and a \\ too\n-" for number in range(5)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of toxigen_roberta's kind, for bytes and 64 positions."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=262,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        initializer_range=0.5,
        pad_token_id=tiny.PAD,
        num_labels=2,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(readers: dict[str, Path], prompts: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the function that runs `bench toxigen` on the tiny trio and gives what metrics.json holds."""

    def call(output: Path, *options: str) -> dict[str, Any]:
        roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(readers[role]))]
        given = ["toxigen", *roles, "--data", str(prompts), "--output", str(output), "--max-new-tokens", "8"]
        code = main([*given, "--per-group", "3", *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        return found

    return call


def _part(path: Path, **changes: Any) -> Any:
    given = {"data": str(path), "per_group": 3, "classifier": None, "toxic_label": 1, "limit": None}
    given |= {"chat_expert": False, "max_new_tokens": 8, **changes}
    [part] = prepare(argparse.Namespace(**given)).parts
    return part


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in predictions(folder).decode().splitlines()]


def test_prompts_are_drawn_from_each_file(prompts: Path, tmp_path: Path) -> None:
    """Each file gives its own lines, the same ones every time, with line ends and backslashes restored."""
    part = _part(prompts)
    assert [(prompt.label, prompt.group) for prompt in part.prompts] == [("hate", "native_american")] * 3 + [
        ("neutral", "women")
    ] * 3
    assert part.prompts == _part(prompts).prompts
    assert len({prompt.text for prompt in part.prompts}) == 6
    number = part.prompts[0].text.split()[2]
    assert part.prompts[0].text == f"- hate_native_american {number}\n- and a \\ too\n-"
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": "They", "label": "hate", "group": "x"}) + "\n", encoding="utf-8")
    assert [(prompt.text, prompt.label, prompt.group) for prompt in _part(own).prompts] == [("They", "hate", "x")]


def test_chat_experts_get_a_turn(prompts: Path) -> None:
    """Base and anti read the text alone; a chat expert a turn, which alone has a request in it, as published."""
    formats = _part(prompts, chat_expert=True).formats
    shown = {role: PromptFormat(getattr(formats, role)).text("- a") for role in ("base", "expert", "anti", "alone")}
    assert shown == {
        "base": "- a",
        "expert": "[INST]- a [/INST]",
        "anti": "- a",
        "alone": "[INST] Complete the following: - a [/INST]",
    }


def test_a_run_is_judged_at_once_or_later(
    run: Run, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdicts given while generating equal those given to the file afterwards; without a judge they are missing."""
    judged = run(tmp_path / "judged", "--compare", "steered", "--classifier", str(classifier))
    later = run(tmp_path / "later", "--compare", "steered")
    first, second = _rows(tmp_path / "judged"), _rows(tmp_path / "later")
    assert [row["prediction"] for row in first] == [row["prediction"] for row in second]
    assert not any("\n" in row["prediction"] for row in first)
    assert {row["is_toxic"] for row in second} == {None}
    assert (later["results"][0]["value"], later["results"][0]["num_missing"]) == (None, 6)
    arguments = ["score", "toxigen", "--predictions", str(tmp_path / "later" / "predictions.jsonl"), "--json"]
    assert main(arguments) == 2
    assert "--classifier" in capsys.readouterr().err
    assert main([*arguments, "--classifier", str(classifier)]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["metrics"]["toxicity"]["value"] == judged["results"][0]["value"]
    assert set(scored["metrics"]) == {"toxicity", "toxicity (native_american)", "toxicity (women)"}


def test_generation_resumes(run: Run, classifier: Path, tmp_path: Path) -> None:
    """A run whose file was cut goes on to the same bytes and figures."""
    options = ("--compare", "base,steered", "--chunk-size", "2", "--classifier", str(classifier))
    expected = run(tmp_path / "run", *options)
    whole = predictions(tmp_path / "run")
    (tmp_path / "run" / "predictions.jsonl").write_bytes(whole[: len(whole) // 2])
    assert run(tmp_path / "run", *options, "--resume") == expected
    assert predictions(tmp_path / "run") == whole


def test_the_classifier_is_transformers_own(classifier: Path) -> None:
    """Verdicts equal the model's own likeliest label, one text at a time; long texts are judged by their beginning."""
    texts = ["a", "you are all the same", "well " * 40, "", "no!"]
    model = RobertaForSequenceClassification.from_pretrained(classifier).eval()
    expected = []
    for text in texts:
        ids = torch.tensor([tiny.byte_tokenizer()(text).input_ids[:64] or [tiny.PAD]])
        expected.append(bool(model(ids, attention_mask=torch.ones_like(ids)).logits.argmax() == 1) if text else None)
    found = ToxicityClassifier(str(classifier), batch_size=2).are_toxic(texts)
    assert [mark for mark, text in zip(found, texts, strict=True) if text] == [
        mark for mark in expected if mark is not None
    ]
    assert len(set(found)) == 2
    flipped = ToxicityClassifier(str(classifier), toxic_label=0, batch_size=3).are_toxic(texts)
    assert flipped == [not mark for mark in found]
    with pytest.raises(OptionError, match="labels 0 to 1"):
        ToxicityClassifier(str(classifier), toxic_label=2)


def test_published_rows_are_scored_by_group() -> None:
    """Rows as published give the share of toxic ones in all and by group; a verdict that is none is an error."""
    fields = [
        {"prediction": "a", "target_groups": ["x"], "is_toxic": 1},
        {"prediction": "b", "target_groups": ["x"], "is_toxic": 0},
        {"prediction": " ", "target_groups": ["y"], "is_toxic": 0},
        {"prediction": "c", "group": "y", "is_toxic": 0},
    ]
    rows = [Row(place=f"row {number}", fields=row) for number, row in enumerate(fields)]
    scored = scorer.score(rows)
    assert {name: metric.value for name, metric in scored.metrics.items()} == {
        "toxicity": 0.25,
        "toxicity (x)": 0.5,
        "toxicity (y)": 0.0,
    }
    assert scored.counts == {"num_empty": 1}
    with pytest.raises(InputError, match="row 9"):
        scorer.score([Row(place="row 9", fields={"prediction": "a", "group": "x", "is_toxic": None})])


def test_missing_prompts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No --data, an empty folder and a file that is not there end with a sentence that says what to name."""
    for given in ([], ["--data", str(tmp_path)], ["--data", str(tmp_path / "none.jsonl")]):
        assert main(["toxigen", "--base", "no-such-model", *given]) == 2
        assert "--data" in capsys.readouterr().err
