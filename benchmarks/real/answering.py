"""Greedy answers of every system to held-out prompts: how many end in GSM8K's `####`, how many numbers are right."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.real.measuring import MODELS, load, steered
from benchmarks.real.recipe import Recipe
from benchmarks.real.rows import Row
from benchmarks.real.stages import write_json
from benchmarks.scoring.gsm8k import last_number
from proxytune import ProxyGenerator

_DRAFT = 4


def write_answers(
    recipe: Recipe, folders: dict[str, Path], tokenizer: Any, rows: list[Row], alpha: float, folder: Path
) -> None:
    """Write answers.json: each system's texts for `rows`, and how drafts of the expert fared.

    The steered base answers with the chosen strength and with 1.
    """
    torch.manual_seed(0)
    models = {name: load(folders[name]) for name in MODELS}
    prompts = [row.prompt for row in rows]
    options: dict[str, Any] = {"max_new_tokens": recipe.max_new_tokens, "batch_size": len(rows)}
    answers: dict[str, Any] = {}
    for name, model in models.items():
        alone = ProxyGenerator(model, model, model, tokenizer=tokenizer, speculation="off")
        answers[name] = {"texts": [done.text for done in alone.generate(prompts, alpha=0.0, **options)]}
    trio = (models["base"], models["expert"], models["anti"])
    generator = ProxyGenerator(*trio, tokenizer=tokenizer, speculation=_DRAFT)
    for strength in sorted({alpha, 1.0}):
        done = generator.generate(prompts, alpha=strength, stats=True, **options)
        stats = done[0].timing.stats
        answers[steered(strength)] = {
            "texts": [one.text for one in done],
            "acceptance": list(stats.acceptance) if stats is not None else [],
        }
    write_json(folder / "answers.json", answers)


def format_rate(texts: list[str]) -> float:
    """Return the share of texts that end in `#### number`.

    >>> format_rate(["3 + 4 = 7 #### 7", "It is 7."])
    0.5
    """
    return sum(last_number(text.rpartition("####")[2]) is not None and "####" in text for text in texts) / len(texts)


def num_right(texts: list[str], rows: list[Row]) -> int:
    """Return how many texts have the reference's number as their last."""
    return sum(
        last_number(text) == last_number(row.completion.rpartition("####")[2])
        for text, row in zip(texts, rows, strict=True)
    )
