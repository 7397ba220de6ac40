"""Tiny random models, a word tokenizer and data files; nothing is downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(40)]
DIM = 16


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors on shared cores are faster, and sums exact from run to run, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of one id per word, with no special token added by itself."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_model(seed: int = 0, *, dim: int = DIM, num_padded: int = 0) -> LlamaForCausalLM:
    """Returns a random Llama of two layers with a window of 32, and logits of ids that no token has."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS) + 4 + num_padded,
            hidden_size=dim,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer of this test."""
    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A random model of this test, in training mode."""
    return make_model().train()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model of the same tokenizer, with four logits more."""
    folder = tmp_path_factory.mktemp("models") / "base"
    make_model(7, dim=32, num_padded=4).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[object]) -> Path:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def copy_rows(num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns rows whose completion is the first word of the prompt, which the word w0 closes."""
    generator = random.Random(seed)
    prompts = [generator.sample(WORDS[1:], generator.randint(2, 8)) for _ in range(num_rows)]
    return [{"prompt": " ".join([*words, WORDS[0]]), "completion": words[0]} for words in prompts]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """24 rows of a copying task."""
    return write_rows(tmp_path / "train.jsonl", copy_rows(24))
