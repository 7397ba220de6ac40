"""The trio of `bench speed --trio real`: what `make real` made, or else a pair cut from SmolLM2-135M, not healed."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real.making import make_base
from benchmarks.real.recipe import Recipe
from benchmarks.real.shrinking import cut
from benchmarks.real.stages import stage

Folders = tuple[Path, Path, Path]


def trio_folders(recipe: Recipe) -> tuple[str, Folders]:
    """Return a label, and the folders of base, expert and anti."""
    base = make_base(recipe)
    anti, expert = recipe.folder / "anti", recipe.folder / "gsm8k-expert-0"
    if anti.is_dir() and expert.is_dir():
        label = f"{recipe.model}; a pair of {recipe.num_layers} of its 30 layers, healed, the expert tuned on GSM8K"
        return label, (base, expert / "model", anti)
    unhealed = stage(recipe.folder / "unhealed", partial(_cut, recipe, base))
    label = f"{recipe.model}; a pair of {recipe.num_layers} of its 30 layers, not healed: run `make real` for drafts"
    return label, (base, unhealed / "expert", unhealed / "anti")


def _cut(recipe: Recipe, base: Path, folder: Path) -> None:
    """Write an anti of evenly spread layers, and an expert with other MLP outputs in the last of them."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    step = model.config.num_hidden_layers / recipe.num_layers
    starts = [int(step * index) for index in range(recipe.num_layers)]
    small = cut(model, [(start, start + 1) for start in starts]).to(torch.bfloat16)
    for name in ("anti", "expert"):
        if name == "expert":
            small.model.layers[-1].mlp.down_proj.weight.data.mul_(1.2)
        small.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
