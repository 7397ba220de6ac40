"""Adapters of every kind, quantised weights, types, TensorBoard, packing, and the sources' OPT example."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import neft
from neft.cli import main
from neft.merging import merge

from .conftest import WORDS, copy_rows, make_tokenizer, write_rows

IDS = torch.arange(4, 24).reshape(2, 10)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """A model of hidden size 64, which bitsandbytes can quantise."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS) + 4, max_position_embeddings=32, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(wide_folder, data_file, tmp_path):
    """Builds configurations of eight steps."""

    def make(name="out", **options):
        defaults = {"max_steps": 8, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "show_progress": False}
        files = {"model": str(wide_folder), "data": data_file, "output": tmp_path / name}
        return neft.TrainingConfig(**{**files, **defaults, **options})

    return make


def _logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def _adapted(base_folder, adapter, **options):
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, **options)
    return PeftModel.from_pretrained(base, adapter)


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({}, {"use_rslora": False, "use_dora": False}),
        ({"use_rslora": True}, {"use_rslora": True}),
        ({"use_dora": True}, {"use_dora": True}),
        ({"lora_targets": ("q_proj", "v_proj"), "lora_alpha": 3.0, "lora_dropout": 0.1}, {"lora_alpha": 3.0}),
    ],
    ids=["lora", "rslora", "dora", "targets"],
)
def test_adapters_and_their_merge(make_config, wide_folder, tmp_path, options, recorded):
    """LoRA, rsLoRA and DoRA learn, say what they are, save nothing else, and merge to the same logits within 1e-5."""
    result = neft.train(make_config(lora_r=4, eval_fraction=0.25, eval_every=1, **options))
    assert result.evaluations[-1][1] < result.evaluations[0][1]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config | recorded == config
    assert config["modules_to_save"] is None
    assert all("lora_" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    merge(tmp_path / "out", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = _logits(_adapted(wide_folder, tmp_path / "out"))
    torch.testing.assert_close(_logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(expected, _logits(AutoModelForCausalLM.from_pretrained(wide_folder)))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("w0 w1")["input_ids"] == [4, 5]
    record = json.loads((tmp_path / "merged" / "neft.json").read_text())
    assert record["config"]["alpha"] == 5.0
    assert record["merged_from"]["base"] == str(wide_folder)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_rslora_scales_by_the_root_of_the_rank(make_config, wide_folder, tmp_path):
    """The same alpha over rank 4: a plain adapter is scaled by alpha / 4, a rank-stabilised one by alpha / 2."""
    for name, expected in (("plain", 2.0), ("stable", 4.0)):
        config = make_config(name, lora_r=4, lora_alpha=8.0, use_rslora=name == "stable", max_steps=1)
        neft.train(config)
        model = _adapted(wide_folder, tmp_path / name)
        scales = {m.scaling["default"] for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)}
        assert scales == {expected}


def test_the_adapters_first_weights_have_a_seed_of_their_own(make_config, tmp_path):
    """Same lora_seed, same adapter; another lora_seed, another adapter, at the same seed of everything else."""
    for name, options in {"a": {}, "b": {"lora_seed": 0}, "c": {"lora_seed": 1}}.items():
        neft.train(make_config(name, lora_r=2, max_steps=1, **options))
    a, b, c = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_training_really_runs(make_config, wide_folder, tmp_path, quantize):
    """QLoRA (NF4) and 8 bit through bitsandbytes: the loss falls, the adapter loads, and its merge is what it tuned."""
    pytest.importorskip("bitsandbytes")
    options = {"lora_r": 4, "quantize": quantize, "eval_fraction": 0.25, "eval_every": 1, "alpha": 1.0}
    result = neft.train(make_config(max_steps=12, **options))
    assert result.evaluations[-1][1] < result.evaluations[0][1] - 0.05
    assert result.is_adapter
    merge(tmp_path / "out", tmp_path / "merged")
    merged = _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    if quantize == "4bit":
        from neft.adapters import quantization_config

        quantised = _adapted(
            wide_folder, tmp_path / "out", quantization_config=quantization_config("4bit", torch.float32)
        )
        for module in quantised.modules():
            module.support_avx512bf16_for_cpu = False  # whose kernel computes in bfloat16
        torch.testing.assert_close(merged, _logits(quantised), atol=1e-5, rtol=1e-5)
        modules = [type(module).__name__ for module in quantised.modules()]
        assert "Linear4bit" in modules
    plain = _logits(_adapted(wide_folder, tmp_path / "out"))
    assert (merged - plain).abs().mean() < 0.1 * plain.abs().mean()


@pytest.mark.parametrize("quantize", [None, "4bit", "8bit"])
def test_evaluating_changes_nothing(make_config, tmp_path, quantize):
    """A run that evaluates after every step gives the adapter of one that never does.

    bitsandbytes' 4-bit layers on a CPU lose their gradient after an evaluation unless they are kept from it.
    """
    pytest.importorskip("bitsandbytes")
    options = {"lora_r": 2, "quantize": quantize, "max_steps": 4}
    held_out = write_rows(tmp_path / "held_out.jsonl", copy_rows(4, seed=9))
    neft.train(make_config("without", **options))
    neft.train(make_config("with", eval_data=held_out, eval_every=1, **options))
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("without", "with"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_quantised_run_resumes(make_config, tmp_path):
    """A checkpoint of a 4-bit run holds the adapter alone, and goes on to the same adapter."""
    pytest.importorskip("bitsandbytes")
    options = {"lora_r": 2, "quantize": "4bit", "max_steps": 4}
    neft.train(make_config("whole", **options))
    from neft.checkpoints import CheckpointStore

    from .test_resuming import _train_until

    with pytest.MonkeyPatch.context() as patch:
        _train_until(patch, make_config("parts", save_every=2, **options), 3)
    (folder,) = CheckpointStore(tmp_path / "parts").checkpoints()
    assert all("lora_" in name for name in load_file(folder / "trained.safetensors"))
    neft.train(make_config("parts", resume=True, **options))
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"mixed_precision": "bf16"}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"mixed_precision": "bf16", "gradient_checkpointing": True, "gradient_accumulation": 2}, torch.float32),
    ],
    ids=["mixed", "pure", "mixed-checkpointed"],
)
def test_types(make_config, tmp_path, options, dtype):
    """Mixed precision keeps float32 weights and pure bf16 does not; both learn under noise."""
    result = neft.train(make_config(eval_fraction=0.25, eval_every=1, alpha=1.0, **options))
    assert result.evaluations[-1][1] < result.evaluations[0][1]
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one(make_config, tmp_path):
    """--compile ends with the loss of an eager run."""
    data = write_rows(tmp_path / "even.jsonl", [{"prompt": f"w{n} w0", "completion": f"w{n}"} for n in range(1, 9)])
    eager = neft.train(make_config("eager", data=data, max_steps=2))
    compiled = neft.train(make_config("compiled", data=data, max_steps=2, compile=True))
    assert compiled.train_loss == pytest.approx(eager.train_loss, abs=1e-3)


def test_tensorboard_has_the_numbers_of_the_log(make_config, tmp_path):
    """The event file holds every loss, rate and evaluation of the JSON log."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    neft.train(make_config(eval_fraction=0.25, eval_every=4, tensorboard=tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for tag, name in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss")):
        written = {event.step: event.value for event in events.Scalars(tag)}
        logged = {line["step"]: line[name] for line in log if name in line}
        assert written == pytest.approx(logged, rel=1e-5)
    assert len(events.Scalars("train/loss")) == 8


def test_packed_training(make_config, tmp_path):
    """Packing takes fewer windows than rows, says so, learns, and counts every row."""
    result = neft.train(make_config(packing=True, batch_size=2, eval_fraction=0.25, eval_every=1, alpha=1.0))
    rows = json.loads((tmp_path / "out" / "neft.json").read_text())["rows"]
    assert rows["packs"]["num_packs"] < result.num_rows == rows["train"]["num_kept"] == 18
    assert rows["packs"]["efficiency"] > 0.8
    assert result.evaluations[-1][1] < result.evaluations[0][1]


def test_opt_on_plain_text(tmp_path, capsys):
    """The sources' example: OPT-350m's architecture, random and small, a text column, max_length=512."""
    # OPT-350m is the one of its family with post-norm layers and projections between embedding and hidden size.
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(
        vocab_size=len(WORDS) + 4, num_attention_heads=2, do_layer_norm_before=False, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    make_tokenizer().save_pretrained(tmp_path / "opt")
    rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in copy_rows(24)]
    data = write_rows(tmp_path / "imdb.jsonl", rows)
    files = ["--model", str(tmp_path / "opt"), "--data", str(data), "--output", str(tmp_path / "out")]
    options = ["--format", "text", "--text-column", "text", "--max-length", "512", "--alpha", "5", "--epochs", "1"]
    assert main(["train", *files, *options, "--batch-size", "4", "--eval-fraction", "0.2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_rows"] + result["num_eval_rows"] == 24
    assert math.isfinite(result["eval_loss"])
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tuned.config.word_embed_proj_dim == 16
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuned.modules())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"adapter": "absent"}, "no adapter folder: adapter_config.json"),
        ({"model": "/nowhere/base"}, "no model folder /nowhere/base"),
        ({"output": "taken"}, "already holds something else"),
    ],
)
def test_what_cannot_be_merged(make_config, tmp_path, capsys, change, complaint):
    """No adapter, no base, a taken folder: one sentence, exit code 2, nothing written."""
    neft.train(make_config(lora_r=2, max_steps=1))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    given = {"adapter": "out", "output": "merged"} | change
    arguments = ["merge", "--adapter", str(tmp_path / given["adapter"]), "--output", str(tmp_path / given["output"])]
    assert main([*arguments, *(["--model", given["model"]] if "model" in given else [])]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_base_stored_in_bits_is_refused(make_config, wide_folder, tmp_path):
    """Merging into a base that is quantised on disk says what to do instead."""
    pytest.importorskip("bitsandbytes")
    from neft.adapters import quantization_config

    neft.train(make_config(lora_r=2, max_steps=1))
    settings = quantization_config("4bit", torch.float32)
    AutoModelForCausalLM.from_pretrained(wide_folder, quantization_config=settings).save_pretrained(tmp_path / "bits")
    with pytest.raises(neft.InputError, match="keep the adapter apart"):
        merge(tmp_path / "out", tmp_path / "merged", model=str(tmp_path / "bits"))
    assert not (tmp_path / "merged").exists()
