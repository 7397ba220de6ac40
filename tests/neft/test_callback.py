"""`NeftCallback` in TRL's SFTTrainer, by the example of the documentation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

import neft
from neft import NeftCallback
from neft.data import PaddingCollator, read_documents, tokenize
from neft.errors import InputError, NoiseError
from neft.loop import Rows

from .conftest import copy_rows, make_model, make_tokenizer, write_rows

DOCS = Path(__file__).parents[2] / "docs" / "neft.md"


def _example() -> str:
    (code,) = re.findall(r"executed by tests/neft/test_callback.py -->\n```python\n(.*?)```", DOCS.read_text(), re.S)
    return code


def _weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _are_equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def folder(model_folder, tmp_path, monkeypatch):
    """A working folder with the example's model M- and rows."""
    shutil.copytree(model_folder, tmp_path / "M-")
    write_rows(tmp_path / "rows.jsonl", copy_rows(24))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "options", ["", "packing=True, max_length=16, ", "packing=True, max_length=16, packing_strategy='wrapped', "]
)
def test_the_example_resumes_bit_equal(folder, options):
    """The documentation's lines train with noise on SFTTrainer; from the checkpoint they end with the same weights."""
    code = _example().replace("max_steps=4, ", f"max_steps=4, use_cpu=True, bf16=False, disable_tqdm=True, {options}")
    namespace: dict = {}
    exec(code, namespace)
    unbroken = _weights(namespace["trainer"].model)
    with neft.noise(namespace["trainer"].model):
        pass  # refused while another is attached

    again: dict = {}
    exec(code.replace("trainer.train()", ""), again)
    again["trainer"].train(resume_from_checkpoint=str(folder / "expert" / "checkpoint-2"))
    assert _are_equal(unbroken, _weights(again["trainer"].model))

    plain: dict = {}
    exec(code.replace("alpha=5.0", "alpha=0.0"), plain)
    assert not _are_equal(unbroken, _weights(plain["trainer"].model))


def _trainer(tmp_path, data_file, callback, **options):
    tokenizer = make_tokenizer()
    documents = read_documents(data_file, format="prompt-completion")
    examples = tokenize(documents, tokenizer, max_length=32, overlong="error").examples
    settings = TrainingArguments(
        output_dir=str(tmp_path / "t"), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, **options
    )
    return Trainer(
        model=make_model(),
        args=settings,
        train_dataset=Rows(examples),
        data_collator=PaddingCollator(0),
        callbacks=[callback],
    )


def test_the_callback_is_the_block_in_a_plain_trainer(tmp_path, data_file):
    """Two steps end with the weights of the same steps inside of `with neft.noise`, with the Trainer's seed."""
    options = {"seed": 3, "remove_unused_columns": False}
    trainer = _trainer(tmp_path, data_file, NeftCallback(alpha=8.0), **options)
    trainer.train()

    class Steps(NeftCallback):
        def on_train_begin(self, *_, **__):
            pass

    callback = Steps()
    other = _trainer(tmp_path, data_file, callback, **options)
    with neft.noise(other.model, alpha=8.0, seed=3) as callback.handle:
        other.train()
    assert _are_equal(_weights(trainer.model), _weights(other.model))


def test_wrong_strengths_are_told_at_once():
    """They are checked before the Trainer has loaded anything."""
    with pytest.raises(InputError, match=r"alpha=5.0 and alpha_rel=0.1 both set the strength"):
        NeftCallback(alpha=5.0, alpha_rel=0.1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"_n_gpu": 2}, "2 GPUs are visible .*torchrun"), ({"num_generations": 4}, "the model's own samples")],
)
def test_trainers_that_noise_would_harm_are_refused(tmp_path, model, changes, complaint):
    """DataParallel and trainers that sample are errors at the beginning of training."""
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert settings.n_gpu <= 1
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(NoiseError, match=complaint):
        NeftCallback().on_train_begin(settings, None, None, model=model)


def test_neftune_noise_alpha_beside_the_callback_is_refused(tmp_path, data_file):
    """The Trainer attaches its own noise first, and two would add up."""
    trainer = _trainer(tmp_path, data_file, NeftCallback(), neftune_noise_alpha=5.0, remove_unused_columns=False)
    with pytest.raises(NoiseError, match="neftune_noise_alpha is active"):
        trainer.train()


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_preference_trainers_noise_the_trained_passes_only(folder, method):
    """Two steps of TRL's trainers draw noise twice: DPO's reference pass over an adapter draws none."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    tokenizer = make_tokenizer()
    rows = [{"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}] * 8
    options = {
        "output_dir": "preference",
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    callback = NeftCallback(alpha=5.0)
    common = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer, "callbacks": [callback]}
    if method == "dpo":
        lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = DPOTrainer(make_model(), args=DPOConfig(**options), peft_config=lora, **common)
    else:
        config = make_model().config
        config.num_labels = 1
        trainer = RewardTrainer(LlamaForSequenceClassification(config), args=RewardConfig(**options), **common)
    trainer.train()
    assert callback.handle.num_passes == 2
