"""The models that are measured: the bundled trio inflated, shapes with random weights, or models of the user's."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.decoding.adapters import difference_lora, merged, random_lora, with_adapter
from benchmarks.decoding.floor import TrioBytes, adapter_bytes, kv_bytes_per_token, step_bytes
from benchmarks.decoding.inflate import BASE_SIZE, PAIR_SIZE, Size, inflate, inflate_adapter
from benchmarks.decoding.naive import Statistics
from benchmarks.decoding.shapes import Shape, random_model, random_prompts, word_tokenizer
from benchmarks.decoding.workloads import Prompts, natural_prompts
from proxytune.demo import trio_path

_QUESTIONS = (
    "Question: Why does the moon have phases?\nAnswer:",
    "Question: How is bread made?\nAnswer:",
    "Question: What does a lighthouse do?\nAnswer:",
    "Question: Who writes the laws of a country?\nAnswer:",
    "Question: What should I pack for a week in the mountains?\nAnswer:",
    "Question: How does a bicycle stay upright?\nAnswer:",
    "Question: Which animals sleep in winter?\nAnswer:",
    "Question: What is the difference between weather and climate?\nAnswer:",
)


@dataclass(frozen=True, kw_only=True)
class Trio:
    """Loaded models and how to feed them.

    Attributes:
        label: Their names; says "inflated" or "random weights" where it is so.
        base: A causal LM; None where it is behind an API alone.
        expert: Another, with weights of its own.
        anti: Another.
        adapted: A PeftModel over a copy of the anti that is the same function as `expert`; None where there is none.
        tokenizer: For all.
        prompts: Gives so many prompts of so many ids.
        num_bytes: Read in a step; `adapter` is that of `adapted`.
    """

    label: str
    base: Any
    expert: Any
    anti: Any
    adapted: Any | None
    tokenizer: Any
    prompts: Prompts
    num_bytes: TrioBytes

    @property
    def models(self) -> tuple[Any, Any, Any]:
        """Base, expert, anti."""
        return self.base, self.expert, self.anti

    def step_bytes(self, reads: str) -> int:
        """Bytes of weights of one step without drafts: of the `base`, the `trio`, or the trio with a `pair`."""
        sizes = self.num_bytes
        return sizes.base if reads == "base" else sizes.pair if reads == "pair" else sizes.plain

    def bytes_per_token(self, reads: str, stats: Statistics) -> float | None:
        """Bytes of weights per token and row, with the drafts that were made; None where the base is elsewhere."""
        if self.base is None:
            return None
        if stats.num_drafted is None or stats.tokens_per_cycle is None:
            return self.step_bytes(reads)
        sizes = self.num_bytes if reads == "pair" else replace(self.num_bytes, adapter=0)
        return sizes.speculative(num_drafted=stats.num_drafted, tokens_per_cycle=stats.tokens_per_cycle)

    def kv_bytes(self, reads: str) -> int:
        """Bytes that a token of a row leaves in the caches of the models that are here."""
        models = self.models[:1] if reads == "base" else self.models
        return sum(kv_bytes_per_token(model.config, model.dtype) for model in models if model is not None)


def inflated_trio(
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 8,
    base_size: Size = BASE_SIZE,
    pair_size: Size = PAIR_SIZE,
) -> Trio:
    """Return the bundled trio at a large model's cost.

    Its expert is the anti with a LoRA of `rank` that holds most of what tuning changed, so that one function can be run
    as three models and as a pair pass. On the demo's 500 questions it answers as well as the bundled expert does.
    """
    folder = trio_path()
    base, tuned, anti = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("base", "expert", "anti")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    grown_base = inflate(base, base_size).to(device=device, dtype=dtype)
    grown_anti = inflate(anti, pair_size)
    lora = inflate_adapter(difference_lora(tuned, anti, rank), grown_anti)
    expert = merged(grown_anti, lora).to(device=device, dtype=dtype)
    grown_anti = grown_anti.to(device=device, dtype=dtype)
    label = f"bundled trio, inflated to {_count(grown_base)}/{_count(expert)}/{_count(grown_anti)}"
    questions, answered = _demo_texts()
    return _trio(
        label,
        (grown_base, expert, grown_anti),
        with_adapter(copy.deepcopy(grown_anti), lora),
        tokenizer,
        lambda count, length: natural_prompts(tokenizer, questions, answered, count=count, length=length),
    )


def shape_trio(
    shapes: tuple[Shape, Shape, Shape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 16,
    context: int = 4096,
    has_pair: bool = True,
) -> Trio:
    """Return models of these shapes with random weights.

    The expert is the anti with a random LoRA of `rank` where both have one shape; else they are two models
    and there is no pair pass. Without `has_pair` the adapter's copy of the anti, a fourth model, is not made.
    """
    base_shape, expert_shape, anti_shape = shapes
    make: dict[str, Any] = {"dtype": dtype, "device": device, "context": context}
    base = random_model(base_shape, seed=1, **make)
    anti = random_model(anti_shape, seed=3, **make)
    adapted = None
    if expert_shape == anti_shape:
        lora = random_lora(anti, rank, seed=2)
        expert = merged(anti, lora)
        adapted = with_adapter(copy.deepcopy(anti), lora) if has_pair else None
    else:
        expert = random_model(expert_shape, seed=2, **make)
    width = base_shape.vocab_size
    return _trio(
        f"{', '.join(shape.label for shape in shapes)}; random weights",
        (base, expert, anti),
        adapted,
        word_tokenizer(width),
        lambda count, length: random_prompts(count, length, vocab_size=width, seed=count + length),
    )


def bundled_trio(*, dtype: torch.dtype, device: torch.device) -> Trio:
    """Return the bundled trio as it is."""
    folder = trio_path()
    roles = [str(folder / name) for name in ("base", "expert", "anti")]
    questions, _ = _demo_texts()
    return loaded_trio(*roles, dtype=dtype, device=device, texts=questions, label="bundled trio")


def loaded_trio(
    base: str | None,
    expert: str,
    anti: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    texts: Sequence[str] = _QUESTIONS,
    label: str | None = None,
) -> Trio:
    """Return a trio of hub ids or folders; an expert that is an adapter over the anti is measured both ways.

    Without `base` the pair alone is loaded, for a base behind an API. `texts` become prompts.
    """
    from peft import PeftModel

    def load(source: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map={"": device}).eval()

    adapted = None
    anti_model = load(anti)
    if (Path(expert) / "adapter_config.json").is_file():
        adapted = PeftModel.from_pretrained(copy.deepcopy(anti_model), expert, autocast_adapter_dtype=False).eval()
        expert_model = PeftModel.from_pretrained(copy.deepcopy(anti_model), expert).merge_and_unload().eval()
    else:
        expert_model = load(expert)
    tokenizer = AutoTokenizer.from_pretrained(base or anti)
    return _trio(
        label or ", ".join(filter(None, (base, expert, anti))),
        (None if base is None else load(base), expert_model, anti_model),
        adapted,
        tokenizer,
        lambda count, length: natural_prompts(tokenizer, texts, texts, count=count, length=length),
    )


def _trio(label: str, models: tuple[Any, Any, Any], adapted: Any | None, tokenizer: Any, prompts: Prompts) -> Trio:
    base, expert, anti = models
    num_bytes = TrioBytes(
        base=0 if base is None else step_bytes(base),
        expert=step_bytes(expert),
        anti=step_bytes(anti),
        adapter=0 if adapted is None else adapter_bytes(adapted),
    )
    return Trio(
        label=label,
        base=base,
        expert=expert,
        anti=anti,
        adapted=adapted,
        tokenizer=tokenizer,
        prompts=prompts,
        num_bytes=num_bytes,
    )


def _demo_texts() -> tuple[list[str], list[str]]:
    """Return the demo's held-out questions, and answered ones about other people."""
    from proxytune.demo.live import held_out_questions
    from proxytune.demo.recipe import Recipe
    from proxytune.demo.tuning import tuning_questions

    world = Recipe().world()
    answered = ["{prompt}{completion}<|endoftext|>".format(**question.row()) for question in tuning_questions(world)[0]]
    return [question.prompt for question in held_out_questions(world)], answered


def _count(model: Any) -> str:
    return f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.0f}M"
