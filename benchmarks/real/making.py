"""Making the trio: M− by shrinking and healing M, then `neft train` of M− (M+) and of M itself, each a stage."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real.healing import distil, shrink
from benchmarks.real.recipe import Recipe
from benchmarks.real.rows import BEHAVIOURS, Behaviour, healing_texts
from benchmarks.real.stages import say, stage
from proxytune import ProxyTuneError
from proxytune.fetching import fetch_model


def load_rows(recipe: Recipe, tokenizer: Any) -> dict[str, Behaviour]:
    """Return the rows of each behaviour."""
    return {
        name: BEHAVIOURS[name](tokenizer, max_tokens=recipe.row_tokens, sizes=recipe.sizes)
        for name in recipe.behaviours
    }


def make_base(recipe: Recipe) -> Path:
    """Return the folder of M."""
    return fetch_model(recipe.model, say=say)


def make_anti(recipe: Recipe, rows: dict[str, Behaviour]) -> Path:
    """Return the folder of M−: M with fewer layers, solved in closed form (a stage of its own), then healed."""
    base = make_base(recipe)
    tokenizer = AutoTokenizer.from_pretrained(base)
    held_out = {row.prompt for part in rows.values() for row in (*part.validation, *part.held_out)}

    def texts() -> Iterator[str]:
        return healing_texts(tokenizer, held_out)

    solved = stage(recipe.folder / "solved", partial(_solve, recipe, base, tokenizer, texts()))
    return stage(recipe.folder / "anti", partial(_heal, recipe, base, solved, tokenizer, texts()))


def make_tuned(recipe: Recipe, source: Path, role: str, behaviour: str, rows: Behaviour, seed: int) -> Path:
    """Return the folder of `source` tuned on a behaviour by `neft train`: role "expert" is M+, "direct" M tuned."""
    return stage(recipe.folder / f"{behaviour}-{role}-{seed}", partial(_tune, recipe, source, role, rows, seed))


def _solve(recipe: Recipe, base: Path, tokenizer: Any, texts: Iterator[str], folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    small = shrink(
        model,
        tokenizer,
        texts,
        num_layers=recipe.num_layers,
        num_texts=recipe.num_solving_texts,
        width=recipe.healing_width,
    )
    _save(small, tokenizer, folder, torch.float32)


def _heal(
    recipe: Recipe, base: Path, solved: Path, tokenizer: Any, texts: Iterator[str], folder: Path
) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    small = AutoModelForCausalLM.from_pretrained(solved, dtype=torch.float32)
    for _ in range(recipe.num_solving_texts):  # the layers were solved on these
        next(texts)
    divergences = distil(
        small,
        model,
        tokenizer,
        texts,
        num_steps=recipe.healing_steps,
        batch_size=recipe.healing_batch,
        width=recipe.healing_width,
        learning_rate=recipe.healing_rate,
        say=say,
    )
    _save(small, tokenizer, folder, torch.bfloat16)
    return {"divergences": divergences}


def _tune(recipe: Recipe, source: Path, role: str, rows: Behaviour, seed: int, folder: Path) -> None:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row.entry) + "\n" for row in rows.tuning), encoding="utf-8")
    is_pair = role == "expert"
    options = {
        "--model": source,
        "--data": data,
        "--output": folder / "model",
        "--format": "prompt-completion",
        "--alpha": recipe.noise_alpha,
        "--epochs": recipe.pair_passes if is_pair else recipe.direct_passes,
        "--learning-rate": recipe.pair_rate if is_pair else recipe.direct_rate,
        "--batch-size": recipe.tuning_batch,
        "--warmup-ratio": 0.1,
        "--mixed-precision": "bf16",
        "--seed": seed,
    }
    command = [
        sys.executable,
        "-m",
        "neft",
        "train",
        "--quiet",
        *(str(part) for pair in options.items() for part in pair),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProxyTuneError(f"neft train failed: {done.stderr.strip().splitlines()[-1:]}")


def _save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
