"""Tiny random models and tokenizers: decisive distributions, no training, nothing downloaded."""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from proxytune import ProxyGenerator

VOCAB_SIZE = 64
PAD, BOS, EOS, UNK = 0, 1, 2, 3
_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_LLAMA_LIKE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_CONFIGS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _LLAMA_LIKE),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_layer": 2, "n_head": 4}),
    "opt": (
        OPTForCausalLM,
        OPTConfig,
        {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "init_std": 0.5},
    ),
    "neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "rotary_pct": 0.5},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _LLAMA_LIKE),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**_LLAMA_LIKE, "head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {**_LLAMA_LIKE, "sliding_window": 4}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
}
ARCHITECTURES = list(_CONFIGS)


def new_model(
    architecture: str = "llama",
    seed: int = 0,
    *,
    vocab_size: int = VOCAB_SIZE,
    hidden_size: int = 32,
    context: int = 128,
    scale: float = 0.5,
    **settings: Any,
) -> Any:
    """Return a new random model in evaluation mode, float32."""
    model_class, config_class, sizes = _CONFIGS[architecture]
    sizes = {**sizes, "vocab_size": vocab_size, "initializer_range": scale, **_SPECIAL, **settings}
    names = ("n_embd", "n_positions") if architecture == "gpt2" else ("hidden_size", "max_position_embeddings")
    sizes |= dict(zip(names, (hidden_size, context), strict=True))
    if architecture == "opt":
        sizes["word_embed_proj_dim"] = hidden_size
        sizes["init_std"] = sizes.pop("initializer_range")
    torch.manual_seed(seed)
    return model_class(config_class(**sizes)).float().eval()


@cache
def model(architecture: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """Return a random model that tests share: whoever changes one takes `new_model`."""
    return new_model(architecture, seed, **settings)


def trio(architecture: str = "llama", **settings: Any) -> tuple[Any, Any, Any]:
    """Return base (wider), expert and anti of one architecture."""
    return (
        model(architecture, 1, **{"hidden_size": 48, **settings}),
        model(architecture, 2, **settings),
        model(architecture, 3, **settings),
    )


WORDS = [f"w{index}" for index in range(VOCAB_SIZE - 4)]


def word_tokenizer(words: list[str] | None = None, *, pad_token: str = "<pad>") -> PreTrainedTokenizerFast:
    """Return a tokenizer of one id per word, joined by spaces, that begins every text with <s>."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(WORDS if words is None else words)]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token=pad_token, unk_token="<unk>"
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer (GPT-2's alphabet, one id per byte, and a few merges)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("Ġ", "w")]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that marks words by `▁`, falls back to bytes, and drops a text's first space, as Llama's."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz.▁", "▁the", "▁a", "ing", "▁w"]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "w"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def generator(architecture: str = "llama", **settings: Any) -> ProxyGenerator:
    """Return a generator over the shared trio of one architecture, with the word tokenizer."""
    base, expert, anti = trio(architecture)
    return ProxyGenerator(base, expert, anti, tokenizer=word_tokenizer(), **settings)


def prompt_ids(length: int, seed: int = 0, *, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Return <s> and random ids that are not special."""
    draws = torch.Generator().manual_seed(seed)
    return [BOS, *torch.randint(4, vocab_size, (length - 1,), generator=draws).tolist()]
