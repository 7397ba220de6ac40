"""Pretraining on the world's text: the tokenizer, packed sequences, and a plain training loop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.demo.text import TextMix, documents
from proxytune.demo.world import World

EOS_TOKEN, PAD_TOKEN = "<|endoftext|>", "<|pad|>"
MAX_LENGTH = 256
_DOCUMENTS_AT_ONCE = 2000
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A Llama's shape and how long and how hot it is trained."""

    width: int
    num_layers: int
    num_heads: int
    inner_width: int
    num_steps: int
    learning_rate: float
    batch_size: int = 16
    sequence_length: int = 128


def build_tokenizer(world: World, mix: TextMix, *, vocab_size: int, seed: int) -> Any:
    """A byte-level BPE trained on the world's text: any other text can be encoded too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(world, mix, seed=seed), 30_000), trainer)
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )


def new_model(size: ModelSize, tokenizer: Any, *, seed: int) -> Any:
    """A randomly initialised model of this shape; the global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.inner_width,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class: Any = LlamaForCausalLM
        return model_class(config)


def packed(texts: Iterator[str], tokenizer: Any, *, length: int) -> Iterator[list[int]]:
    """Rows of whole documents, each ended by EOS, padded on the right; a row always begins with a document."""
    row: list[int] = []
    while chunk := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(chunk)["input_ids"]:
            document = [*ids[: length - 1], tokenizer.eos_token_id]
            if len(row) + len(document) > length:
                yield row + [tokenizer.pad_token_id] * (length - len(row))
                row = []
            row += document


def pretrain(
    model: Any,
    tokenizer: Any,
    texts: Iterator[str],
    size: ModelSize,
    *,
    label: str,
    is_bfloat16: bool = False,
    log_every: int = 200,
) -> None:
    """Train in place by AdamW with warm-up and a cosine to a twentieth; progress goes to stderr.

    With `is_bfloat16` products are taken in bfloat16 (weights stay float32): twice as fast on a CPU with AVX512-BF16.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, size.num_steps))
    rows = packed(texts, tokenizer, length=size.sequence_length)
    model.train()
    start = time.monotonic()
    for step in range(1, size.num_steps + 1):
        loss = _step(model, list(islice(rows, size.batch_size)), tokenizer.pad_token_id, is_bfloat16=is_bfloat16)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % log_every == 0 or step == size.num_steps:
            elapsed_s = time.monotonic() - start
            sys.stderr.write(f"{label}: step {step}/{size.num_steps}  loss {loss:.3f}  {elapsed_s:.0f} s\n")
    model.eval()


def _step(model: Any, rows: Sequence[Sequence[int]], pad_token_id: int, *, is_bfloat16: bool) -> float:
    input_ids = torch.tensor(rows)
    labels = input_ids.masked_fill(input_ids == pad_token_id, _IGNORED)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bfloat16):
        output = model(input_ids=input_ids, labels=labels, use_cache=False)
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return float(output.loss.detach())


def _warm_cosine(step: int, num_steps: int, *, floor: float = 0.05) -> float:
    num_warm = max(1, num_steps // 20)
    if step < num_warm:
        return (step + 1) / num_warm
    progress = (step - num_warm) / max(1, num_steps - num_warm)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
