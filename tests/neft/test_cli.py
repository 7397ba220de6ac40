"""The command line: exit codes, streams, sentences."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from neft.cli import main


@pytest.fixture
def arguments(model_folder, data_file, tmp_path):
    """A command line that trains two steps."""
    files = ["--model", str(model_folder), "--data", str(data_file), "--output", str(tmp_path / "out")]
    return ["train", *files, "--max-steps", "2", "--batch-size", "4"]


def test_a_run_in_a_process(arguments, tmp_path):
    """`python -m neft train` ends with 0, one JSON line on stdout, and its progress on stderr."""
    done = subprocess.run([sys.executable, "-m", "neft", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["output"] == str(tmp_path / "out")
    assert "2/2" in done.stderr


def test_quiet_prints_nothing(arguments, tmp_path, capsys):
    """--quiet leaves stdout empty and draws no bar; the folder is there."""
    assert main([*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step/s" not in captured.err
    assert (tmp_path / "out" / "neft.json").exists()


def test_options_reach_the_run(arguments, tmp_path, capsys):
    """What is given on the command line is what neft.json records."""
    options = ["--alpha", "7.5", "--noise", "gaussian-l2", "--seed", "3", "--schedule", "linear", "--lora-r", "2"]
    more = ["--lora-targets", "q_proj", "v_proj", "--eval-fraction", "0.2", "--eval-every", "1", "--dtype", "auto"]
    assert main([*arguments, *options, *more]) == 0
    recorded = json.loads((tmp_path / "out" / "neft.json").read_text())["config"]
    wanted = {
        "alpha": 7.5,
        "noise": "gaussian-l2",
        "seed": 3,
        "schedule": "linear",
        "lora_targets": ["q_proj", "v_proj"],
    }
    assert recorded | wanted == recorded
    assert json.loads(capsys.readouterr().out)["num_eval_rows"] == 5


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--alpha", "-1"], "alpha is -1.0"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--alpha", "much"], "invalid float value: 'much'"),
        (["--alhpa", "5"], "unrecognized arguments: --alhpa"),
        (["--noise", "pink"], "invalid choice: 'pink'"),
        (["--format", "alpacca"], "format is 'alpacca'"),
        (["--data", "/nowhere/rows.jsonl"], "no data file /nowhere/rows.jsonl"),
        (["--model", "/nowhere/model"], "no model folder /nowhere/model"),
        (["--model", "some/where/model"], "no model folder some/where/model"),
        (["--output", "/dev/null/out"], "output /dev/null/out"),
        (["--epochs", "1"], "give one"),
        (["--alpha", "5", "--alpha-rel", "0.1"], "not allowed with argument --alpha"),
        (["--model", "models/x"], "no model folder models/x, it is not in the hub's cache, and HF_HUB_OFFLINE"),
        (["--quantize", "4bit"], "add lora_r"),
        (["--mixed-precision", "fp16"], "needs a GPU"),
        (["--max-length", "1"], "none of 24 rows fits"),
    ],
)
def test_the_users_mistakes_end_with_2(arguments, capsys, extra, complaint):
    """One sentence on stderr with the reason, no traceback, nothing on stdout, exit code 2."""
    assert main([*arguments, *extra]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    sentence = captured.err.splitlines()[-1]
    assert sentence.startswith("neft: ")
    assert complaint in sentence


def test_no_command_is_a_mistake_and_help_is_not(capsys):
    """`neft` ends with 2; `neft --help` and `neft train --help` with 0."""
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["train", "--help"]) == 0
    assert "--alpha" in capsys.readouterr().out


def test_a_folder_without_a_model_ends_with_2(arguments, tmp_path, capsys):
    """An existing folder that holds no model is named, without a look at the network."""
    (tmp_path / "empty").mkdir()
    assert main([*arguments, "--model", str(tmp_path / "empty")]) == 2
    assert "can be loaded from" in capsys.readouterr().err


def test_another_runs_folder_needs_overwrite(arguments, tmp_path, capsys):
    """The same run may write again; another ends with 2, unless --overwrite."""
    assert main(arguments) == 0
    assert main(arguments) == 0
    other = [*arguments, "--alpha", "1"]
    assert main(other) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*other, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "neft.json").read_text())["config"]["alpha"] == 1.0


def test_debug_shows_the_traceback(arguments, capsys):
    """--debug adds the traceback and keeps the exit code."""
    assert main([*arguments, "--alpha", "-1", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_ends_with_1_and_leaves_nothing(arguments, tmp_path):
    """When the weights cannot be written, the run ends with 1, one sentence, and no output or partial folder."""

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    before = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "neft", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit_files)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("neft: ")
    assert set(tmp_path.iterdir()) == before


def test_a_model_that_is_nowhere_fails_at_once(arguments):
    """With a hub that cannot be reached, a relative path that is no folder ends within the start-up time, with 2."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "neft", *arguments, "--model", "models/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=45)
    assert done.returncode == 2
    assert "no model folder models/x" in done.stderr.splitlines()[-1]
    assert "cannot be reached" in done.stderr.splitlines()[-1]


def test_a_missing_deepspeed_is_named(arguments, tmp_path, capsys):
    """--deepspeed takes a file; without the package it says which one is missing."""
    if importlib.util.find_spec("deepspeed") is not None:
        pytest.skip("deepspeed is installed")
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert main([*arguments, "--deepspeed", str(tmp_path / "zero.json")]) == 2
    assert "pip install deepspeed" in capsys.readouterr().err


def test_an_encoder_decoder_is_refused(arguments, tmp_path, capsys):
    """A model that cannot take the noise ends with 2 and a sentence, not a traceback."""
    from transformers import BertConfig, BertLMHeadModel

    from .conftest import make_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=44, **sizes, is_decoder=True)).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    assert main([*arguments, "--model", str(tmp_path / "bert")]) == 2
    assert "decoder-only" in capsys.readouterr().err
