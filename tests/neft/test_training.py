"""Whole runs of tiny models."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import neft
from neft.data import Example, PaddingCollator
from neft.evaluating import evaluation_loss
from neft.monitoring import NoiseStep

from .conftest import copy_rows, make_model, write_rows

EXAMPLES = [Example(list(range(4, 4 + n)), [-100, *range(5, 4 + n)]) for n in (3, 5, 4, 6, 3, 7, 5, 4)]
COLLATOR = PaddingCollator(pad_id=0)


def _config(model_folder, data_file, tmp_path, **options):
    defaults = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "show_progress": False}
    files = {"model": str(model_folder), "data": data_file, "output": tmp_path / "out"}
    return neft.TrainingConfig(**{**files, **defaults, **options})


def _weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def _are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _trained(tmp_path, alpha, **arguments):
    """Returns a model after 3 steps of a plain Trainer, inside a noise block unless alpha is None; and the passes."""
    model = make_model()
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "report_to": [], "disable_tqdm": True, **arguments}
    settings = TrainingArguments(str(tmp_path), save_strategy="no", remove_unused_columns=False, **options)
    trainer = Trainer(model=model, args=settings, train_dataset=EXAMPLES, data_collator=COLLATOR)
    block = contextlib.nullcontext() if alpha is None else neft.noise(model, alpha=alpha)
    with block as handle:
        if handle is not None:
            trainer.add_callback(NoiseStep(handle))
        trainer.train()
    return model.state_dict(), 0 if handle is None else handle.num_passes


def test_alpha_zero_trains_bit_equal_to_no_hook(tmp_path):
    """Three optimizer steps with the hook at alpha=0 give the very weights of a run without it; alpha=5 does not."""
    plain, _ = _trained(tmp_path, None)
    assert _are_equal(plain, _trained(tmp_path, 0.0)[0])
    assert not _are_equal(plain, _trained(tmp_path, 5.0)[0])


def test_every_pass_of_an_accumulation_has_its_own_noise(tmp_path):
    """Two passes per step under Trainer: twice as many draws, all of them different."""
    model = make_model()
    arguments = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 2, "report_to": []}
    settings = TrainingArguments(str(tmp_path), save_strategy="no", remove_unused_columns=False, **arguments)
    examples = [EXAMPLES[0]] * 8
    trainer = Trainer(model=model, args=settings, train_dataset=examples, data_collator=COLLATOR)
    with neft.noise(model, alpha=5.0, seed=1) as handle:
        trainer.add_callback(NoiseStep(handle))
        draws = _draws_of(trainer, model)
    assert len(draws) == 4
    for index, one in enumerate(draws):
        assert not any(torch.equal(one, other) for other in draws[index + 1 :])


def _draws_of(trainer, model):
    """Trains, and returns what each pass's embedding was moved by."""
    draws = []

    def record(embedding, inputs, output):
        draws.append((output - torch.nn.functional.embedding(inputs[0], embedding.weight)).detach())

    watch = model.get_input_embeddings().register_forward_hook(record)
    trainer.train()
    watch.remove()
    return draws


def test_the_same_seed_gives_the_same_weights(model_folder, data_file, tmp_path):
    """Two runs of one configuration are bit-equal; another seed, or no noise, is not."""
    runs = {}
    for name, options in {"one": {}, "two": {}, "seed": {"seed": 1}, "plain": {"alpha": 0.0}}.items():
        neft.train(_config(model_folder, data_file, tmp_path, output=tmp_path / name, **options))
        runs[name] = _weights(tmp_path / name)
    assert _are_equal(runs["one"], runs["two"])
    assert not _are_equal(runs["one"], runs["seed"])
    assert not _are_equal(runs["one"], runs["plain"])


def test_the_output_is_a_model_without_traces(model_folder, data_file, tmp_path):
    """The folder loads as a model and tokenizer; its config is the original's, without noise or a disabled cache."""
    result = neft.train(_config(model_folder, data_file, tmp_path, eval_fraction=0.25))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w0 w1")["input_ids"] == [4, 5]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "neft.json", "log.jsonl"} <= saved
    assert not any("checkpoint" in name or name == "training_args.bin" for name in saved)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((model_folder / name).read_text())
    record = json.loads((tmp_path / "out" / "neft.json").read_text())
    assert record["config"]["alpha"] == 5.0
    assert record["result"]["eval_loss"] == result.eval_loss
    assert len(record["data"]["train"]) == 64
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert log[-1]["eval_loss"] == result.eval_loss


def test_the_model_learns(model_folder, tmp_path):
    """A hundred steps, with noise, bring the held-out loss of a copying task far below a uniform guess."""
    many = write_rows(tmp_path / "many.jsonl", copy_rows(200, seed=1))
    held_out = write_rows(tmp_path / "held_out.jsonl", copy_rows(16, seed=9))
    result = neft.train(
        _config(model_folder, many, tmp_path, max_steps=100, alpha=0.5, eval_data=held_out, warmup_ratio=0.1)
    )
    assert (result.steps, result.num_rows, result.num_eval_rows) == (100, 200, 16)
    assert result.eval_loss < 0.6 * math.log(44)


def test_an_adapter_is_written_for_peft(model_folder, data_file, tmp_path):
    """With lora_r the folder is an adapter that names its base, loads in PEFT, and gives the recorded loss."""
    result = neft.train(_config(model_folder, data_file, tmp_path, lora_r=2, eval_data=data_file))
    assert result.is_adapter
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(model_folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    documents = neft.data.read_documents(data_file, format="prompt-completion")
    data = neft.data.tokenize(documents, tokenizer, max_length=32, overlong="drop")
    loss = evaluation_loss(model, data.examples, COLLATOR, batch_size=4)
    assert loss == pytest.approx(result.eval_loss, abs=1e-6)


def test_early_stopping_puts_the_best_back(model_folder, data_file, tmp_path):
    """With a rate that destroys the model, the run stops early and saves the weights of its best evaluation."""
    held_out = write_rows(tmp_path / "held_out.jsonl", copy_rows(16, seed=9))
    options = {"max_steps": 60, "learning_rate": 0.1, "alpha": 0.0, "schedule": "constant"}
    stopping = {"eval_data": held_out, "eval_every": 3, "early_stopping_patience": 2}
    result = neft.train(_config(model_folder, data_file, tmp_path, **options, **stopping))
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert result.saved_step < result.steps < 60
    assert losses[result.saved_step] == result.eval_loss == min(losses.values())
    documents = neft.data.read_documents(held_out, format="prompt-completion")
    data = neft.data.tokenize(
        documents, AutoTokenizer.from_pretrained(tmp_path / "out"), max_length=32, overlong="drop"
    )
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert evaluation_loss(saved, data.examples, COLLATOR, batch_size=4) == pytest.approx(result.eval_loss, abs=1e-6)


def test_evaluation_weighs_every_token_alike(model):
    """The loss of a set is the mean over its learned tokens, whatever the batch size, and the mode is kept."""
    per_batch = [evaluation_loss(model, EXAMPLES, COLLATOR, batch_size=size) for size in (1, 3, 8)]
    logits = [(model(torch.tensor([e.input_ids])).logits[0, :-1], torch.tensor(e.labels[1:])) for e in EXAMPLES]
    parts = [torch.nn.functional.cross_entropy(x, y, reduction="sum").item() for x, y in logits]
    by_hand = sum(parts) / sum(len(e.labels) - 1 for e in EXAMPLES)
    assert per_batch == pytest.approx([by_hand] * 3, abs=1e-5)
    assert model.training


def test_a_loss_that_is_not_finite_stops_the_run(model_folder, data_file, tmp_path):
    """A diverging run raises with the step and the rate, and writes nothing."""
    with pytest.raises(neft.DivergenceError, match=r"at step \d+; lower learning_rate"):
        neft.train(
            _config(model_folder, data_file, tmp_path, learning_rate=1e30, max_steps=20, schedule="constant", alpha=0.0)
        )
    assert not (tmp_path / "out").exists()


def test_a_window_beyond_the_models_is_refused(model_folder, data_file, tmp_path):
    """max_length above max_position_embeddings is an error with both numbers."""
    with pytest.raises(neft.InputError, match="max_length is 64, but the model reads 32"):
        neft.train(_config(model_folder, data_file, tmp_path, max_length=64))


def test_modules_that_are_not_there_are_refused(model_folder, data_file, tmp_path):
    """LoRA targets that the model does not have are the user's error."""
    with pytest.raises(neft.InputError, match="lora_targets nowhere"):
        neft.train(_config(model_folder, data_file, tmp_path, lora_r=2, lora_targets=("nowhere",)))


def test_gradient_checkpointing_and_accumulation_run(model_folder, data_file, tmp_path):
    """Checkpointing gives the loss of a run without it, also with LoRA, accumulation and bf16 weights."""
    plain = neft.train(_config(model_folder, data_file, tmp_path, output=tmp_path / "a", gradient_accumulation=2))
    spared = neft.train(
        _config(
            model_folder,
            data_file,
            tmp_path,
            output=tmp_path / "b",
            gradient_accumulation=2,
            gradient_checkpointing=True,
        )
    )
    assert spared.train_loss == pytest.approx(plain.train_loss, abs=1e-6)
    adapter = {"lora_r": 2, "gradient_checkpointing": True, "dtype": "bfloat16"}
    assert neft.train(_config(model_folder, data_file, tmp_path, output=tmp_path / "c", **adapter)).steps == 4


def test_a_loss_that_breaks_between_log_lines_stops_the_run(model_folder, data_file, tmp_path):
    """A loss that is not finite is seen at the end even if no step after it was logged."""
    broken = {"learning_rate": 1e30, "max_steps": 6, "log_every": 50, "schedule": "constant", "alpha": 0.0}
    with pytest.raises(neft.DivergenceError, match="at step 6"):
        neft.train(_config(model_folder, data_file, tmp_path, **broken))
