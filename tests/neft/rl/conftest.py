"""A tiny model, separable answer pairs (the better answer has the word w1), and a reward model trained on them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.neft.conftest import WORDS, make_tokenizer, write_rows

GOOD = "w1"
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make_policy(seed: int = 0) -> LlamaForCausalLM:
    """Returns a random Llama of two layers, 32 wide, with a window of 64.

    Its weights are larger than usual: an adapter leaves the head alone, and over a head of the usual size no hidden
    state gives a word more than about twice its share.
    """
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS) + 4,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.1,
            **_SPECIAL,
        )
    )


def make_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Returns a random GPT-2 of the same size."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS) + 4, n_embd=32, n_layer=2, n_head=2, n_positions=64, **_SPECIAL)
    )


def save(model, folder: Path) -> Path:
    """Saves a model with the word tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def answer_pairs(num_pairs: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns pairs of four-word answers to four-word prompts; only the better one has the good word."""
    draws = random.Random(seed)
    others = [word for word in WORDS if word != GOOD]
    pairs = []
    for _ in range(num_pairs):
        better = [GOOD, *draws.sample(others, 3)]
        draws.shuffle(better)
        answers = {"chosen": " ".join(better), "rejected": " ".join(draws.sample(others, 4))}
        pairs.append({"prompt": " ".join(draws.sample(others, 4)), **answers})
    return pairs


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy."""
    return save(make_policy(), tmp_path_factory.mktemp("policies") / "policy")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 pairs; their prompts serve as prompts too."""
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", answer_pairs(128))


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 other pairs."""
    return write_rows(tmp_path_factory.mktemp("pairs") / "held_out.jsonl", answer_pairs(64, seed=9))


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, pairs_file: Path) -> Path:
    """A reward model trained on the pairs."""
    from neft.rl import RewardConfig, train_reward

    folder = tmp_path_factory.mktemp("rewards") / "reward"
    options = {"max_steps": 60, "learning_rate": 3e-3, "show_progress": False}
    train_reward(RewardConfig(model=policy_folder, data=pairs_file, output=folder, **options))
    return folder
