"""A tiny trio on disk: random Llamas over one small byte-level tokenizer."""

import io
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.cli import main
from tests.cli.console import CONTEXT, SIZES, Result, Run

_TEXT = ["Once upon a time there was a small town.", "Who lives there? A baker and a smith live there."]


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, expert and anti."""
    root = tmp_path_factory.mktemp("trio")
    tokenizer = _tokenizer()
    for seed, (role, (layers, width, heads, kv_heads)) in enumerate(SIZES.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=CONTEXT,
            initializer_range=0.5,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
    return root


@pytest.fixture(scope="session")
def roles(trio: Path) -> list[str]:
    """The options that name the trio."""
    return [part for role in SIZES for part in (f"--{role}", str(trio / role))]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with `stdin` as its standard input."""

    def run_command(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
