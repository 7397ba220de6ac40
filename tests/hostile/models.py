"""Changes of a model's folder: config, weights, shards, tokenizer."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.hostile.changes import (
    BAD_JSON,
    BAD_WEIGHTS,
    PICKLES,
    SPECIAL_FILES,
    Change,
    edited,
    in_turn,
    other_names,
    other_shapes,
    pickled,
    removed,
    replaced,
    sharded,
    weights,
    without,
    written,
)

BAD_NUMBERS: dict[str, Any] = {
    "null": None,
    "text": "many",
    "negative": -1,
    "zero": 0,
    "huge": 10**12,
    "fraction": 2.5,
    "list": [1],
    "object": {"a": 1},
    "infinite": float("inf"),
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
OTHERS: dict[str, tuple[Any, ...]] = {
    "model_type": (None, 7, "", "nothing", "t5", ["llama"], "../llama"),
    "hidden_act": (None, 7, "nothing", ["silu"], "__import__('os')"),
    "num_labels": (10**9, 10**12),
    "rms_norm_eps": ("small", [1e-6], {}),
    "max_position_embeddings": ("long", [], -5, 2.5),
    "torch_dtype": ("nothing", 7, ["float32"], "int8", "os"),
    "dtype": ("nothing", 7, "int8"),
    "rope_parameters": ("yarn", [1], {"rope_type": "nothing"}, {"rope_type": 7}, {"rope_theta": "big"}),
    "quantization_config": ("4bit", {"quant_method": "nothing"}, {"quant_method": 7}, [], {"a": 1}),
    "layer_types": ("full", [], ["nothing"] * 2, 7, ["full_attention"] * 10**6),
    "architectures": (["Nothing"], "LlamaForCausalLM", [7]),
    "auto_map": ({"AutoConfig": "../evil.Config", "AutoModelForCausalLM": "evil.Model"}, 7, {"AutoConfig": 7}),
    "attention_bias": ("maybe", [1]),
    "pad_token_id": ("pad", -7, 10**9, [0]),
    "tie_word_embeddings": ("yes", [1]),
}


SHARDS: dict[str, Any] = {
    "outside": "../../anti/model.safetensors",
    "absolute": "/etc/passwd",
    "device": "/dev/zero",
    "missing": "model-00009.safetensors",
    "number": 7,
    "list": ["model-00001-of-00001.safetensors"],
    "empty": "",
    "null": None,
    "folder": ".",
}


def config_cases() -> Iterator[tuple[str, Change]]:
    """Yield changes of a model's config.json: each size, and what else decides how it is built."""
    for key in SIZES:
        for name, value in BAD_NUMBERS.items():
            yield f"config {key} {name}", edited("config.json", **{key: value})
    for key, values in OTHERS.items():
        for number, value in enumerate(values):
            yield f"config {key} {number}", edited("config.json", **{key: value})


def file_cases() -> Iterator[tuple[str, Change]]:
    """Yield files that are no JSON, and no files."""
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        for name, data in BAD_JSON.items():
            yield f"{file} {name}", written(file, data)
        for name, make in SPECIAL_FILES.items():
            yield f"{file} is {name}", replaced(file, make)
    for file in ("config.json", "model.safetensors"):
        yield f"no {file}", removed(file)


def weight_cases() -> Iterator[tuple[str, Change]]:
    """Yield weights that are damaged, incomplete, in shards of elsewhere, or pickles."""
    for name, data in BAD_WEIGHTS.items():
        yield f"weights {name}", written("model.safetensors", data)
    for name, make in SPECIAL_FILES.items():
        yield f"weights are {name}", replaced("model.safetensors", make)
    yield "weights cut off", lambda folder: os.truncate(folder / "model.safetensors", 5000)
    yield "weights of other names", weights(other_names)
    for part in ("embed_tokens", "norm.weight", "layers.1", "q_proj", "mlp", "lm_head"):
        yield f"weights without {part}", weights(partial(without, part=part))
        yield f"weights with another shape of {part}", weights(partial(other_shapes, part=part))
    for name, shard in SHARDS.items():
        yield f"shard {name}", sharded(**{"model.embed_tokens.weight": shard})
    yield "shard incomplete", sharded(**{"model.embed_tokens.weight": "model-00001-of-00001.safetensors"})
    yield "no shards", sharded()
    yield "index of a list", in_turn(sharded(), written("model.safetensors.index.json", b"[]"))
    for name, make in PICKLES.items():
        yield f"pickle of {name}", pickled(make)


def tokenizer_cases() -> Iterator[tuple[str, Change]]:
    """Yield changes of a role's tokenizer."""
    for name, entries in {
        "unknown class": {"tokenizer_class": "NothingTokenizer"},
        "class of code": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        "class is a number": {"tokenizer_class": 7},
        "special token is a number": {"bos_token": 7},
        "added tokens are text": {"added_tokens_decoder": "none"},
        "added tokens are wrong": {"added_tokens_decoder": {"a": {"content": 7}}},
        "chat template is a number": {"chat_template": 7, "tokenizer_class": 7},
    }.items():
        yield f"tokenizer {name}", edited("tokenizer_config.json", **entries)
    for name, entries in {
        "without a model": {"model": None},
        "of an unknown model": {"model": {"type": "Nothing"}},
        "with a vocabulary of text": {"model": {"type": "WordLevel", "vocab": "text", "unk_token": "<unk>"}},
        "with negative ids": {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "<unk>"}},
        "with huge ids": {"model": {"type": "WordLevel", "vocab": {"a": 2**40}, "unk_token": "<unk>"}},
        "with ids exchanged": {"model": {"type": "WordLevel", "vocab": {"w1": 4, "w0": 5}, "unk_token": "<unk>"}},
        "with a decoder of nothing": {"decoder": {"type": "Nothing"}},
        "with a processor of text": {"post_processor": "none"},
        "with tokens of text": {"added_tokens": "none"},
    }.items():
        yield f"tokenizer {name}", edited("tokenizer.json", **entries)
    yield "tokenizer of a list", written("tokenizer.json", b'["a"]')
    files = removed("tokenizer.json", "tokenizer_config.json")
    yield "vocabulary of text", in_turn(files, written("vocab.json", b"{"))
    yield "sentencepiece of text", in_turn(files, written("tokenizer.model", b"no"))
