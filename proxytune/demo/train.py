"""The recipe that makes the bundled trio: `python -m proxytune.demo.train --output DIR`, seeded, on two CPU cores.

Pretrains the base and the anti on the world's text, tunes the expert from the anti, tunes the base directly for
comparison (only its score is kept), measures all of them and writes base/, expert/, anti/ and recorded.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from proxytune.demo.evaluate import Score, cloze_knowledge, gap_closed, score
from proxytune.demo.live import answers_of, held_out_questions, load, steered_answers
from proxytune.demo.pretrain import ModelSize, build_tokenizer, new_model, pretrain
from proxytune.demo.recipe import EXPERT_PLAN, TUNED_BASE_PLAN, Recipe
from proxytune.demo.text import documents
from proxytune.demo.tuning import copy_model, tune
from proxytune.errors import InputError, ProxyTuneError

_SHARD = "3MB"
_LABEL = "recorded by proxytune.demo.train; 'tuned' is the base tuned directly, whose weights are not shipped"


def make_trio(output: Path, recipe: Recipe, *, num_threads: int = 2) -> dict[str, Any]:
    """Make a trio in a new folder and return what recorded.json holds.

    Raises:
        InputError: if the folder exists and is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: choose a new folder")
    start = time.monotonic()
    torch.set_num_threads(num_threads)
    seconds = {
        "base": _pretrain_role(output / "base", recipe, recipe.base, label="base", seed=recipe.seed + 1),
        "anti": _pretrain_role(output / "anti", recipe, recipe.anti, label="anti", seed=recipe.seed + 2),
    }
    with tempfile.TemporaryDirectory(prefix="proxytune-trio-") as folder:
        expert, tuned = Path(folder, "expert"), Path(folder, "tuned")
        world = recipe.world()
        tune(output / "anti", expert, world, EXPERT_PLAN, seed=recipe.seed, progress=sys.stderr)
        copy_model(expert, output / "expert")
        tune(output / "base", tuned, world, TUNED_BASE_PLAN, seed=recipe.seed, progress=sys.stderr)
        recorded = _measure(output, tuned, recipe)
    seconds["all"] = round(time.monotonic() - start, 1)
    recorded |= {"seconds": seconds, **_provenance(recipe, num_threads)}
    (output / "recorded.json").write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    return recorded


def _pretrain_role(folder: Path, recipe: Recipe, size: ModelSize, *, label: str, seed: int) -> float:
    start = time.monotonic()
    world = recipe.world()
    tokenizer = build_tokenizer(world, recipe.mix, vocab_size=recipe.vocab_size, seed=recipe.seed)
    model = new_model(size, tokenizer, seed=seed)
    pretrain(
        model, tokenizer, documents(world, recipe.mix, seed=seed), size, label=label, is_bfloat16=recipe.is_bfloat16
    )
    model.save_pretrained(folder, max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder)
    return round(time.monotonic() - start, 1)


def _measure(trio: Path, tuned: Path, recipe: Recipe) -> dict[str, Any]:
    world = recipe.world()
    questions = held_out_questions(world)
    folders = {"base": trio / "base", "anti": trio / "anti", "expert": trio / "expert", "tuned": tuned}
    rows: dict[str, Score] = {role: score(answers_of(path, questions), questions) for role, path in folders.items()}
    steered = steered_answers(trio / "base", trio / "expert", trio / "anti", questions, alpha=1.0)
    rows["steered"] = score(steered, questions)
    test_facts, all_facts = world.facts_of(world.test), world.facts_of(world.people)
    models = {role: load(path) for role, path in folders.items()}
    return {
        "label": _LABEL,
        "rows": {role: row.as_dict() for role, row in rows.items()},
        "gap_closed": gap_closed(rows["base"], rows["steered"], rows["tuned"]),
        "cloze_test_people": {role: round(cloze_knowledge(*pair, test_facts), 4) for role, pair in models.items()},
        "cloze_everybody": {role: round(cloze_knowledge(*pair, all_facts), 4) for role, pair in models.items()},
        "parameters": {role: pair[0].num_parameters() for role, pair in models.items()},
    }


def _provenance(recipe: Recipe, num_threads: int) -> dict[str, Any]:
    return {
        "seed": recipe.seed,
        "is_bfloat16": recipe.is_bfloat16,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()} CPU, {num_threads} threads of {os.cpu_count()} cores",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; exit code 2 for what the user gave, 1 for anything else that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m proxytune.demo.train", description="Make the demo's trio from nothing."
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="new folder for base/, expert/, anti/, recorded.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the text and the weights (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument(
        "--bfloat16", action="store_true", help="bfloat16 products in pretraining: other weights, sooner"
    )
    options = parser.parse_args(argv)
    try:
        recorded = make_trio(
            options.output, Recipe(seed=options.seed, is_bfloat16=options.bfloat16), num_threads=options.threads
        )
    except ProxyTuneError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, InputError) else 1
    sys.stdout.write(json.dumps(recorded, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
