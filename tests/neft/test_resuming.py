"""A run that was stopped and resumed ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import neft
from neft import training
from neft.checkpoints import CheckpointStore
from neft.errors import OutputError

from .conftest import copy_rows, make_model, make_tokenizer, write_rows

STOP_AT = 7


@pytest.fixture(scope="module")
def dropout_folder(tmp_path_factory):
    """A model with dropout, so that the random state matters."""
    folder = tmp_path_factory.mktemp("models") / "dropout"
    model = make_model()
    model.config.attention_dropout = 0.2
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(dropout_folder, base_folder, data_file, tmp_path):
    """Builds configurations of three epochs of six steps, with held-out rows and a checkpoint every third step."""
    held_out = write_rows(tmp_path / "held_out.jsonl", copy_rows(8, seed=9))

    def make(name, **options):
        defaults = {"epochs": 3, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-2, "log_every": 2}
        defaults |= {"eval_data": held_out, "save_every": 3, "show_progress": False, "seed": 4}
        options |= {"base": str(base_folder)} if options.get("base") == "wide" else {}
        files = {"model": str(dropout_folder), "data": data_file, "output": tmp_path / name}
        return neft.TrainingConfig(**{**files, **defaults, **options})

    return make


class _At(TrainerCallback):
    """Does something at the start of a step, or in the middle of it, before its update."""

    def __init__(self, step, action, *, is_inside=False):
        self.step = step
        self.action = action
        self.is_inside = is_inside

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step and not self.is_inside:
            self.action()

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == self.step and self.is_inside:
            self.action()


def _train_with(monkeypatch, config, callback, error, match=None):
    """Trains with another callback until the error it leads to."""
    make_loop = training.make_loop

    def with_callback(*args, **options):
        loop = make_loop(*args, **options)
        loop.add_callback(callback)
        return loop

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_loop", with_callback)
        with pytest.raises(error, match=match):
            neft.train(config)


def _train_until(monkeypatch, config, step, error=KeyboardInterrupt):
    """Trains until an interruption before the given step's update."""

    def interrupt():
        raise error

    _train_with(monkeypatch, config, _At(step, interrupt, is_inside=True), error)


def _weights(folder):
    names = [name for name in ("model.safetensors", "adapter_model.safetensors") if (folder / name).exists()]
    return load_file(folder / names[0])


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _lines(folder):
    """The log without times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_r": 2, "lora_dropout": 0.3, "use_dora": True},
        {"schedule": "linear", "max_steps": 14, "epochs": None, "noise": "gaussian", "dtype": "bfloat16"},
        {"alpha_rel": 0.3, "early_stopping_patience": 2, "learning_rate": 0.1, "eval_every": 1, "schedule": "constant"},
        {"early_stopping_patience": 1, "save_every": 6, "learning_rate": 0.05},
        {"base": "wide"},
        {"base": "wide", "lora_r": 2, "lora_dropout": 0.3, "packing": True, "max_steps": 12, "epochs": None},
    ],
    ids=["full", "dora", "bf16", "early-stopping", "epoch-end", "against-base", "against-base-lora-packed"],
)
@pytest.mark.parametrize("stop_at", [4, STOP_AT])
def test_a_resumed_run_is_bit_equal(monkeypatch, make_config, tmp_path, options, stop_at):
    """Interrupted inside of a step and resumed: weights, evaluations, losses and log are those of one run."""
    whole = neft.train(make_config("whole", **options))
    partial = make_config("parts", **options)
    if stop_at >= whole.steps:
        pytest.skip("the run is over before that step")
    _train_until(monkeypatch, partial, stop_at)
    assert not (tmp_path / "parts").exists()
    resumed = neft.train(make_config("parts", **options, resume=True))
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
    assert resumed.evaluations == whole.evaluations
    assert (resumed.steps, resumed.saved_step, resumed.eval_loss) == (whole.steps, whole.saved_step, whole.eval_loss)
    assert resumed.train_loss == pytest.approx(whole.train_loss, abs=1e-5)
    for one, other in zip(_lines(tmp_path / "whole"), _lines(tmp_path / "parts"), strict=True):
        assert one.get("eval_loss") == other.get("eval_loss")
        assert one["step"] == other["step"]
    assert not (tmp_path / "parts.partial").exists()


def test_a_second_interruption_is_resumed_too(monkeypatch, make_config, tmp_path):
    """Two stops, the second in the resumed run, change nothing either; only the newest checkpoints stay."""
    neft.train(make_config("whole"))
    _train_until(monkeypatch, make_config("parts", keep_checkpoints=2), STOP_AT)
    _train_until(monkeypatch, make_config("parts", keep_checkpoints=2, resume=True), 13)
    kept = [path.name for path in CheckpointStore(tmp_path / "parts").checkpoints()]
    assert kept == ["checkpoint-9", "checkpoint-12"]
    neft.train(make_config("parts", resume=True))
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))


def test_a_failure_keeps_the_checkpoints(monkeypatch, make_config, tmp_path):
    """Any exception leaves what was saved; with nothing saved, nothing is left."""
    _train_until(monkeypatch, make_config("late"), STOP_AT, RuntimeError)
    _train_until(monkeypatch, make_config("early"), 1, RuntimeError)
    assert (tmp_path / "late.partial" / "checkpoint-6").is_dir()
    assert not (tmp_path / "early.partial").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"alpha": 1.0}, "alpha was 5.0 and is 1.0"),
        ({"seed": 5}, "seed was 4 and is 5"),
        ({"gradient_accumulation": 1}, "gradient_accumulation was 2 and is 1"),
        ({"lora_r": 2}, "lora_r was None and is 2"),
        ({"base": "wide"}, "base was None and is "),
        ({"data": "other"}, "checksum of data train was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(monkeypatch, make_config, tmp_path, change, complaint):
    """Another option or other data is an error that names it, and leaves the checkpoint."""
    _train_until(monkeypatch, make_config("out"), 4)
    if "data" in change:
        write_rows(tmp_path / "train.jsonl", copy_rows(24, seed=3))
        change = {}
    with pytest.raises(OutputError, match=complaint):
        neft.train(make_config("out", resume=True, **change))
    assert (tmp_path / "out.partial" / "checkpoint-3").is_dir()


def test_an_unfinished_run_is_not_lost_unasked(monkeypatch, make_config, tmp_path):
    """The same command without resume is refused while checkpoints lie there; overwrite starts anew."""
    _train_until(monkeypatch, make_config("out"), 4)
    with pytest.raises(OutputError, match=r"unfinished run \(checkpoint-3\); go on with it by --resume"):
        neft.train(make_config("out"))
    assert neft.train(make_config("out", overwrite=True)).steps == 18
    assert not (tmp_path / "out.partial").exists()


def test_resume_without_a_checkpoint_starts(make_config):
    """A command may always say --resume."""
    assert neft.train(make_config("out", resume=True, max_steps=2, epochs=None)).steps == 2


def test_a_damaged_checkpoint_is_refused(monkeypatch, make_config, tmp_path):
    """Weights of another model, or a state that is not JSON, are errors; half a checkpoint is not seen at all."""
    _train_until(monkeypatch, make_config("out"), STOP_AT)
    folder = tmp_path / "out.partial" / "checkpoint-6"
    shutil.copytree(folder, tmp_path / "out.partial" / ".writing" / "checkpoint-9")
    shutil.copytree(folder, tmp_path / "out.partial" / "checkpoint-12")
    (tmp_path / "out.partial" / "checkpoint-12" / "neft_run.json").unlink()
    assert CheckpointStore(tmp_path / "out").checkpoints() == [folder]
    (folder / "neft_run.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        neft.train(make_config("out", resume=True))


def test_no_checkpoint_loads_as_a_model(monkeypatch, make_config, tmp_path):
    """What an unfinished run leaves cannot be taken for its result."""
    _train_until(monkeypatch, make_config("out"), STOP_AT)
    for folder in (tmp_path / "out.partial", tmp_path / "out.partial" / "checkpoint-6"):
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(folder)
        with pytest.raises((OSError, ValueError)):
            AutoTokenizer.from_pretrained(folder)


def test_ctrl_c_in_process_saves_and_says_how_to_go_on(monkeypatch, make_config, tmp_path):
    """A signal ends the run after its step, with a checkpoint that resumes bit-equal; the handlers are put back."""
    neft.train(make_config("whole", save_every=None))
    before = signal.getsignal(signal.SIGINT)
    press = _At(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    config = make_config("parts", save_every=None)
    _train_with(monkeypatch, config, press, neft.TrainingInterrupted, match="after step 5 of 18")
    assert signal.getsignal(signal.SIGINT) is before
    neft.train(make_config("parts", save_every=None, resume=True))
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))


def _command(config, *more):
    options = ["--model", config.model, "--data", str(config.data), "--output", str(config.output)]
    options += ["--eval-data", str(config.eval_data), "--max-steps", "400", "--batch-size", "2", "--seed", "4"]
    return [sys.executable, "-m", "neft", "train", *options, "--learning-rate", "1e-3", *more]


def _wait_for(is_so, process):
    for _ in range(1200):
        if is_so():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_resumed_bit_equal(make_config, tmp_path, number):
    """SIGKILL in training leaves no output and a checkpoint to go on from; Ctrl-C also says how, and ends with 1."""
    whole, parts = make_config("whole"), make_config("parts")
    assert subprocess.run(_command(whole, "--quiet"), check=False).returncode == 0
    process = subprocess.Popen(_command(parts, "--save-every", "20"), stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: (tmp_path / "parts.partial" / "checkpoint-60").exists(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert not (tmp_path / "parts").exists()
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "with --resume (resume=True) goes on" in errors.splitlines()[-1]
    else:
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(_command(parts, "--resume"), capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["steps"] == 400
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(monkeypatch, make_config, tmp_path):
    """When a checkpoint cannot be written the run fails, and the older checkpoint stays and resumes."""
    neft.train(make_config("whole"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fill = _At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1])))
    try:
        _train_with(monkeypatch, make_config("parts"), fill, Exception)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in (tmp_path / "parts.partial").iterdir()) == ["checkpoint-3", "log.jsonl"]
    neft.train(make_config("parts", resume=True))
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
