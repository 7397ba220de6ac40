"""Models by shape alone: the sizes of known decoders, filled with random weights on the device that will run them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from proxytune import ProxyTuneError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
NUM_SPECIAL = 4


class ShapeError(ProxyTuneError, ValueError):
    """A shape that is unknown, or that cannot be made."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-type decoder with an untied head; `depth` are the layers of the model it stands for."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    depth: int

    @property
    def label(self) -> str:
        """The name, with what was cut off it."""
        is_cut = self.num_layers < self.depth
        return f"{self.name} ({self.num_layers} of {self.depth} layers)" if is_cut else self.name

    def config(self, context: int = 4096) -> LlamaConfig:
        """Return the transformers config for sequences of at most `context` tokens."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


_SIZES = {
    "llama-2m": (512, 128, 384, 8, 4, 4),
    "llama-25m": (4096, 384, 1024, 12, 6, 6),
    "llama-120m": (4096, 768, 2048, 16, 12, 12),
    "llama2-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama2-13b": (32000, 5120, 13824, 40, 40, 40),
    "llama2-70b": (32000, 8192, 28672, 80, 64, 8),
}
SHAPES = {name: Shape(name, *sizes, depth=sizes[3]) for name, sizes in _SIZES.items()}


def parse_shape(text: str) -> Shape:
    """Return a shape by name; `name:20` is the same model cut to 20 layers.

    >>> parse_shape("llama2-70b:20").label
    'llama2-70b (20 of 80 layers)'

    Raises:
        ShapeError: No such shape, or not so many layers.
    """
    name, _, layers = text.partition(":")
    if name not in SHAPES:
        raise ShapeError(f"shape {name!r} is unknown: take one of {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    if not layers:
        return shape
    if not layers.isdecimal() or not 1 <= int(layers) <= shape.num_layers:
        raise ShapeError(f"shape {text!r} asks for {layers} layers: from 1 to {shape.num_layers}.")
    return replace(shape, num_layers=int(layers))


def parse_shapes(text: str) -> tuple[Shape, Shape, Shape]:
    """Return the shapes of base, expert and anti from `base,expert,anti`.

    Raises:
        ShapeError: Not three, or their vocabularies differ.
    """
    shapes = [parse_shape(part.strip()) for part in text.split(",")]
    if len(shapes) != 3:
        raise ShapeError(f"--shape has {len(shapes)} part(s): write three, base,expert,anti.")
    base, expert, anti = shapes
    if len({shape.vocab_size for shape in shapes}) > 1:
        raise ShapeError(f"the vocabularies of {text} differ in size: take shapes that share one.")
    return base, expert, anti


def random_model(shape: Shape, *, dtype: torch.dtype, device: torch.device, seed: int, context: int = 4096) -> Any:
    """Return a causal LM of a shape in evaluation mode; its weights are drawn on the device, from `seed`."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape.config(context), dtype=dtype)
    return model.eval()


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one word per id, for models that were given no language."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(NUM_SPECIAL, vocab_size))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def random_prompts(count: int, length: int, *, vocab_size: int, seed: int) -> list[list[int]]:
    """Return prompts of `length` ids each, none of them special."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(NUM_SPECIAL, vocab_size, (count, length), generator=draws).tolist()
