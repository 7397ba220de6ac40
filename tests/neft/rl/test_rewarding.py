"""Reward models: the loss, the direction, what is written, and how answers are scored."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from neft import DataError, InputError, OutputError
from neft.rl import RewardConfig, RewardScorer, read_pairs, train_reward
from neft.rl.encoding import encode_pairs
from neft.rl.loading import load_new_reward_model
from neft.rl.scoring import pair_accuracy, rewards_of
from tests.neft.conftest import make_tokenizer, write_rows

from .conftest import make_gpt2, save


def _config(policy_folder, pairs_file, tmp_path, **options):
    settings = {"max_steps": 2, "batch_size": 8, "learning_rate": 3e-3, "show_progress": False}
    files = {"model": policy_folder, "data": pairs_file, "output": tmp_path / "out"}
    return RewardConfig(**{**files, **settings, **options})


def _fresh_accuracy(config, pairs_file):
    set_seed(config.seed)
    model = load_new_reward_model(config)
    pairs, _ = encode_pairs(read_pairs(pairs_file), make_tokenizer(), max_length=64)
    return pair_accuracy(model, pairs, pad_id=0, batch_size=64)


@pytest.mark.parametrize("options", [{}, {"lora_r": 4, "learning_rate": 1e-2}], ids=["full", "lora"])
def test_training_raises_the_accuracy_on_held_out_pairs(policy_folder, pairs_file, held_out_file, tmp_path, options):
    """Sixty steps bring separable held-out pairs from a coin's accuracy to above 0.9; the saved weights have it."""
    config = _config(policy_folder, pairs_file, tmp_path, max_steps=60, eval_data=held_out_file, **options)
    before = _fresh_accuracy(config, held_out_file)
    result = train_reward(config)
    assert before < 0.75
    assert result.eval_accuracy > 0.9
    assert (result.num_pairs, result.num_eval_pairs, result.num_dropped, result.steps) == (128, 64, 0, 60)
    assert result.is_adapter == ("lora_r" in options)
    scorer = RewardScorer.from_pretrained(str(tmp_path / "out"))
    pairs = read_pairs(held_out_file)
    chosen = scorer.score([p.prompt for p in pairs], [p.chosen for p in pairs])
    rejected = scorer.score([p.prompt for p in pairs], [p.rejected for p in pairs])
    share = sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(pairs)
    assert share == result.eval_accuracy


def test_the_loss_is_that_of_the_source(policy_folder, pairs_file, tmp_path):
    """The first logged loss is the mean of −log σ(r_chosen − r_rejected) of the fresh model, by hand."""
    config = _config(policy_folder, pairs_file, tmp_path, max_steps=1, batch_size=128)
    set_seed(config.seed)
    model = load_new_reward_model(config)
    pairs, _ = encode_pairs(read_pairs(pairs_file), make_tokenizer(), max_length=64)
    chosen, rejected = (
        rewards_of(model, [pair.prompt_ids + ids(pair) for pair in pairs], pad_id=0, batch_size=128)
        for ids in (lambda pair: pair.chosen_ids, lambda pair: pair.rejected_ids)
    )
    by_hand = sum(math.log1p(math.exp(worse - better)) for better, worse in zip(chosen, rejected, strict=True))
    assert train_reward(config).train_loss == pytest.approx(by_hand / 128, abs=1e-5)


def test_what_is_written(policy_folder, pairs_file, tmp_path):
    """A classifier with one output and its padding id, tokenizer, log and record; no checkpoint; the same run again."""
    config = _config(policy_folder, pairs_file, tmp_path, eval_fraction=0.25)
    result = train_reward(config)
    folder = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_labels, model.config.pad_token_id, model.config.use_cache) == (1, 0, True)
    assert AutoTokenizer.from_pretrained(folder)("w0")["input_ids"] == [4]
    assert not any("checkpoint" in path.name or path.suffix == ".bin" for path in folder.iterdir())
    record = json.loads((folder / "neft.json").read_text())
    assert record["result"]["eval_accuracy"] == result.eval_accuracy
    assert len(record["data"]["data"]) == 64
    assert "trl" in record["versions"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2]
    assert log[-1]["eval_accuracy"] == result.eval_accuracy
    assert (result.num_pairs, result.num_eval_pairs) == (96, 32)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_reward(config)
    again = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(OutputError, match="already holds something else"):
        train_reward(_config(policy_folder, pairs_file, tmp_path, seed=1))


def test_gpt2_and_a_tokenizer_without_padding(pairs_file, tmp_path):
    """GPT-2 has no padding token: end-of-sequence pads, and the score is read at the last word, in any batch."""
    folder = save(make_gpt2(), tmp_path / "gpt2")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    train_reward(_config(folder, pairs_file, tmp_path, lora_r=2))
    scorer = RewardScorer.from_pretrained(str(tmp_path / "out"))
    prompts, answers = ["w3", "w4 w5 w6", "w7 w8"], ["w9 w2 w1", "w1", "w2 w3 w4 w5"]
    alone = [scorer.score([prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)]
    assert scorer.score(prompts, answers) == pytest.approx(alone, abs=1e-5)


def test_a_score_is_of_the_ids_of_training(reward_folder):
    """A finished answer is scored with its end-of-sequence, an unfinished one without; the model's mode is kept."""
    scorer = RewardScorer.from_pretrained(str(reward_folder))
    finished = scorer.model(input_ids=torch.tensor([[5, 6, 7, 2]])).logits.item()
    unfinished = scorer.model(input_ids=torch.tensor([[5, 6, 7]])).logits.item()
    scores = scorer.score(["w1 w2"] * 2, ["w3"] * 2, are_finished=[True, False])
    assert scores == pytest.approx([finished, unfinished], abs=1e-5)
    assert finished != pytest.approx(unfinished, abs=1e-3)
    assert not scorer.model.training
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


def test_wrong_models_and_data(policy_folder, pairs_file, tmp_path):
    """A model that is not there, one that is no reward model, and pairs longer than the window are the user's."""
    with pytest.raises(InputError, match="no model folder"):
        train_reward(_config(tmp_path / "nowhere", pairs_file, tmp_path))
    with pytest.raises(InputError, match="not a reward model with one output"):
        RewardScorer.from_pretrained(str(policy_folder))
    with pytest.raises(DataError, match="none of 128 pairs fits the window of 5"):
        train_reward(_config(policy_folder, pairs_file, tmp_path, max_length=5))
    with pytest.raises(InputError, match="max_length is 65, but the model reads 64"):
        train_reward(_config(policy_folder, pairs_file, tmp_path, max_length=65))
    with pytest.raises(InputError, match="lora_targets nowhere"):
        train_reward(_config(policy_folder, pairs_file, tmp_path, lora_r=2, lora_targets=("nowhere",)))
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": "w1", "chosen": "w2", "rejected": "w2"}])
    with pytest.raises(DataError, match=r"same.jsonl, row 1: 'chosen' and 'rejected' are the same"):
        train_reward(_config(policy_folder, same, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"same.jsonl"}


def test_long_pairs_are_counted(policy_folder, pairs_file, tmp_path):
    """A pair that does not fit the window is left out and counted."""
    long = {"prompt": "w1 " * 70, "chosen": "w2", "rejected": "w3"}
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    result = train_reward(_config(policy_folder, write_rows(tmp_path / "long.jsonl", [*rows, long]), tmp_path))
    assert (result.num_pairs, result.num_dropped) == (128, 1)


def test_several_processes_are_refused(policy_folder, pairs_file, tmp_path, monkeypatch):
    """Reward and policy runs use one process; a launcher of more is told so."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started"):
        train_reward(_config(policy_folder, pairs_file, tmp_path))
