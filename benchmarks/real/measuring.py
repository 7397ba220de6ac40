"""Nats of reference answers under base, anti, expert, the steered base and the base tuned directly, row by row.

Every system reads the same tokens: prompt, answer, end token. Models run in bfloat16; differences are formed in float32
by the product's own rule.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks.real.healing import padded
from benchmarks.real.recipe import Recipe
from benchmarks.real.rows import Behaviour, Row
from benchmarks.real.stages import write_json
from proxytune.rules.proxy import steer

_BATCH = 4
MODELS = ("base", "anti", "expert", "direct")


def measure_nats(recipe: Recipe, folders: dict[str, Path], tokenizer: Any, rows: Behaviour, folder: Path) -> None:
    """Write nats.json: for the validation and the held-out rows, each row's tokens and its figures by system.

    `folders` has the model of each of MODELS.
    """
    models = {name: load(folders[name]) for name in MODELS}
    parts = {"validation": rows.validation, "held_out": rows.held_out}
    nats = {name: _measure(recipe, models, tokenizer, part) for name, part in parts.items()}
    write_json(folder / "nats.json", nats)


def load(folder: Path) -> Any:
    """Return a model in bfloat16."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def steered(alpha: float) -> str:
    """Return the name of the base steered with this strength.

    >>> steered(0.5)
    'steered 0.5'
    """
    return f"steered {alpha:g}"


def _measure(recipe: Recipe, models: dict[str, Any], tokenizer: Any, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each row's figures, in the order of the rows; rows of like length share a batch."""
    encoded = [_encode(tokenizer, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: sum(map(len, encoded[index])))
    figures_by_index: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
        figures = _batch_figures(recipe, models, [encoded[index] for index in indices])
        figures_by_index.update(zip(indices, figures, strict=True))
    return [figures_by_index[index] for index in range(len(rows))]


def _encode(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    return tokenizer(row.prompt).input_ids, [*tokenizer(row.completion).input_ids, tokenizer.eos_token_id]


@torch.inference_mode()
def _batch_figures(
    recipe: Recipe, models: dict[str, Any], rows: Sequence[tuple[list[int], list[int]]]
) -> list[dict[str, Any]]:
    ids, mask = padded([[*prompt, *answer] for prompt, answer in rows])
    logits = {name: model(input_ids=ids, attention_mask=mask, use_cache=False).logits for name, model in models.items()}
    figures = []
    for index, (prompt, answer) in enumerate(rows):
        span = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        of_row = {name: values[index, span].float() for name, values in logits.items()}
        figures.append(_row_figures(recipe, of_row, torch.tensor(answer)))
    return figures


def _row_figures(recipe: Recipe, logits: dict[str, Tensor], answer: Tensor) -> dict[str, Any]:
    """Return a row's nats by system, and of each strength the tokens whose top choice is not M's, or is M+'s."""
    systems = dict(logits)
    for alpha in recipe.alphas:
        systems[steered(alpha)] = steer(logits["base"], logits["expert"], logits["anti"], alpha)
    nats = {
        name: round(functional.cross_entropy(values, answer, reduction="sum").item(), 4)
        for name, values in systems.items()
    }
    top = {name: values.argmax(-1) for name, values in systems.items()}
    names = [steered(alpha) for alpha in recipe.alphas]
    return {
        "num_tokens": len(answer),
        "nats": nats,
        "changed": {name: int((top[name] != top["base"]).sum()) for name in names},
        "drafts_kept": {name: int((top[name] == top["expert"]).sum()) for name in names},
    }
