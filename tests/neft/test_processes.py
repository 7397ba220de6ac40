"""Several gloo processes on this machine, started as a user starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neft

from .conftest import copy_rows, make_model, write_rows

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _run(launcher, *arguments):
    """Starts two processes and returns what they wrote."""
    port = ["--main_process_port" if "accelerate" in launcher[2] else "--master-port", _free_port()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, *port, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of all runs, with their data."""
    root = tmp_path_factory.mktemp("processes")
    write_rows(root / "train.jsonl", copy_rows(24))
    write_rows(root / "held_out.jsonl", copy_rows(9, seed=9))
    (root / "fsdp.json").write_text('{"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}')
    return root


@pytest.fixture(scope="module")
def train(model_folder, root):
    """Returns a function that trains six steps in two processes, with held-out rows."""
    files = ["--model", model_folder, "--data", root / "train.jsonl", "--eval-data", root / "held_out.jsonl"]
    settings = ["--max-steps", "6", "--batch-size", "2", "--log-every", "1", "--learning-rate", "1e-2"]

    def run(kind, name, *options, launcher=TORCHRUN):
        shard = ["--fsdp", root / "fsdp.json", "--early-stopping-patience", "5"] if kind == "fsdp" else []
        more = ["--eval-every", "2", "--output", root / name, *shard, *options]
        return _run(launcher, "-m", "neft", "train", *files, *settings, *more)

    return run


@pytest.fixture(scope="module")
def whole(train):
    """Two uninterrupted runs: DDP through accelerate launch, FSDP2 through torchrun."""
    return {"ddp": train("ddp", "ddp", launcher=ACCELERATE), "fsdp": train("fsdp", "fsdp")}


_DRAWS = """
import sys, torch, neft
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from tests.neft.conftest import make_model
state = PartialState(cpu=True)
model = torch.nn.parallel.DistributedDataParallel(make_model().train())
ids = torch.arange(4, 16).reshape(2, 6)
seen = []
with neft.noise(model.module, seed=3) as handle:
    watch = model.module.get_input_embeddings().register_forward_hook(lambda m, a, output: seen.append(output.detach()))
    for step in range(2):
        handle.step = step
        model(input_ids=ids, labels=ids).loss.backward()
draws = torch.stack(seen)
gathered = [torch.zeros_like(draws) for _ in range(2)]
torch.distributed.all_gather(gathered, draws)
if state.is_main_process:
    torch.save(gathered, sys.argv[2])
state.destroy_process_group()
"""


def test_two_processes_draw_different_noise(tmp_path):
    """Two DDP processes on the same rows: every draw of the four is another, each by its own (seed, rank, step)."""
    script = tmp_path / "draws.py"
    script.write_text(_DRAWS)
    done = _run(TORCHRUN, script, Path.cwd(), tmp_path / "draws.pt")
    assert done.returncode == 0, done.stderr
    first, second = torch.load(tmp_path / "draws.pt")
    draws = [*first, *second]
    for index, one in enumerate(draws):
        assert not any(torch.equal(one, other) for other in draws[index + 1 :])
    model = make_model().train()
    ids = torch.arange(4, 16).reshape(2, 6)
    with neft.noise(model, seed=3, rank=1) as handle:
        seen = []
        model.get_input_embeddings().register_forward_hook(lambda m, a, output: seen.append(output.detach()))
        for handle.step in range(2):
            model(input_ids=ids)
    assert torch.equal(torch.stack(seen), second)


def test_ddp_and_fsdp_train_the_same(whole, root):
    """Accelerate launch and torchrun, DDP and FSDP2: one output, one line, the same losses; a plain model folder."""
    results = {}
    for name, process in whole.items():
        assert process.returncode == 0, process.stderr
        (line,) = process.stdout.splitlines()
        results[name] = json.loads(line)
        assert results[name]["num_processes"] == 2
        assert results[name]["effective_batch_size"] == 4
        assert process.stderr.count("6/6") == 1
        log = [json.loads(line) for line in (root / name / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert results["fsdp"]["train_loss"] == pytest.approx(results["ddp"]["train_loss"], abs=1e-5)
    assert results["fsdp"]["eval_loss"] == pytest.approx(results["ddp"]["eval_loss"], abs=1e-5)
    ddp, fsdp = (load_file(root / name / "model.safetensors") for name in ("ddp", "fsdp"))
    torch.testing.assert_close(fsdp, ddp, atol=1e-4, rtol=1e-4)
    configs = [json.loads((root / name / "config.json").read_text()) for name in ("ddp", "fsdp")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("kind", "options"), [("ddp", ["--lora-r", "2"]), ("fsdp", [])], ids=["ddp-lora", "fsdp"])
def test_two_processes_tune_against_a_base_as_one_does(train, model_folder, base_folder, root, kind, options):
    """The steered loss is divided by all processes' tokens: weights and held-out loss are those of one process."""
    name = f"{kind}-against"
    done = train(kind, name, "--base", base_folder, "--alpha", "0", *options)
    assert done.returncode == 0, done.stderr
    alone = neft.train(
        neft.TrainingConfig(
            model=str(model_folder),
            base=str(base_folder),
            data=root / "train.jsonl",
            eval_data=root / "held_out.jsonl",
            output=root / f"{name}-alone",
            lora_r=2 if options else None,
            alpha=0.0,
            max_steps=6,
            batch_size=2,
            gradient_accumulation=2,
            learning_rate=1e-2,
            show_progress=False,
        )
    )
    assert json.loads(done.stdout)["eval_loss"] == pytest.approx(alone.eval_loss, abs=1e-4)
    file = "adapter_model.safetensors" if options else "model.safetensors"
    one, two = (load_file(root / folder / file) for folder in (f"{name}-alone", name))
    torch.testing.assert_close(two, one, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_resume_bit_equal(train, whole, root, kind, monkeypatch):
    """A run of two processes, killed after a checkpoint and resumed, ends with the weights of a whole one."""
    assert whole[kind].returncode == 0
    (root / "killing").mkdir(exist_ok=True)
    (root / "killing" / "sitecustomize.py").write_text(_KILL_IN_STEP_FIVE)
    parts = f"{kind}-parts"
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "killing"))
        assert train(kind, parts, "--save-every", "2").returncode != 0
    assert not (root / parts).exists()
    assert (root / f"{parts}.partial" / "checkpoint-4").is_dir()
    done = train(kind, parts, "--resume")
    assert done.returncode == 0, done.stderr
    one, other = (load_file(root / name / "model.safetensors") for name in (kind, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (root / f"{parts}.partial").exists()


# Python imports a sitecustomize of its path by itself; this one kills the first process in its fifth step.
_KILL_IN_STEP_FIVE = """
import os, signal, sys
if os.environ.get("RANK") == "0":
    import transformers
    before = transformers.TrainerCallback.on_pre_optimizer_step
    def kill(self, args, state, control, **_):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    transformers.TrainerCallback.on_pre_optimizer_step = kill
"""


def test_a_mistake_is_reported_once(train, root):
    """Two processes with the same wrong option write one sentence."""
    done = train("ddp", "out", "--alpha", "-1")
    assert done.returncode != 0
    assert done.stderr.count("neft: alpha is -1.0") == 1
    assert not (root / "out").exists()
