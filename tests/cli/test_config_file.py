"""`--config FILE` of both commands and of bench."""

import json
from pathlib import Path

import pytest

from neft.cli import main as neft
from proxytune.cli.parser import parse
from proxytune.errors import OptionError, UnknownOptionError
from tests.cli.console import Run

_FILE = """
max_new_tokens: 5
temperature: 0.7
prompt: [first, -second]
ignore-eos: true
load-in-4bit: false
progress: false
device-map: {"": 0}
seed: null
"""


def test_file_holds_any_option(tmp_path: Path) -> None:
    """Numbers, texts, flags, repeated options and objects, by either spelling; null is as if nothing was said."""
    (tmp_path / "run.yaml").write_text(_FILE)
    args = parse(["generate", "--config", str(tmp_path / "run.yaml"), "--temperature=0", "--base", "b"])
    assert (args.max_new_tokens, args.prompt, args.ignore_eos, args.seed) == (5, ["first", "-second"], True, None)
    assert (args.quantization, args.progress, args.device_map) == (None, False, {"": 0})
    assert (args.temperature, args.base) == (0.0, "b")  # what is said on the command line counts


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("max_new_tokns: 5", UnknownOptionError, "did you mean --max-new-tokens"),
        ("max_new_tokens: many", OptionError, "invalid int value: 'many'"),
        ("- a", OptionError, "is no mapping"),
        ("a: [", OptionError, "cannot be read"),
        (None, OptionError, "cannot be read"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str | None, error: type[Exception], sentence: str) -> None:
    """They are told as on the command line."""
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(error, match=sentence):
        parse(["generate", "--config", str(tmp_path / "run.yaml")])


def test_bench_takes_one(run: Run, tmp_path: Path) -> None:
    """The benchmarks' options, too."""
    (tmp_path / "run.yaml").write_text("limit: none at all")
    done = run("bench", "truthfulqa", "--config", tmp_path / "run.yaml")
    assert (done.code, "argument --limit: invalid int value" in done.err) == (2, True)


def test_neft_takes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that are required may be in it, and so may lists."""
    options = {"model": "m", "data": "d.jsonl", "output": "o", "lora_targets": ["q", "k"], "epochs": -1}
    (tmp_path / "run.yaml").write_text(json.dumps(options))
    assert neft(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "epochs is -1" in capsys.readouterr().err
