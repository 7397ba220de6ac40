"""`make real`: make the trio of real weights, measure it, and write table and figure; a rerun skips what is done."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.real.answering import write_answers
from benchmarks.real.figures import choose_alpha
from benchmarks.real.making import load_rows, make_anti, make_base, make_tuned
from benchmarks.real.measuring import measure_nats
from benchmarks.real.recipe import Recipe
from benchmarks.real.report import write_report
from benchmarks.real.stages import read_json, say, stage
from proxytune.errors import ProxyTuneError


def main(argv: Sequence[str] | None = None) -> int:
    """Run every stage that is not done, seed by seed, and write the report after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="training seeds (default: 3)")
    parser.add_argument("--behaviours", nargs="+", default=["gsm8k", "alpaca"], choices=("gsm8k", "alpaca"))
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the report goes (default: the cache)")
    options = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    recipe = Recipe(seeds=tuple(range(options.seeds)))
    try:
        run(recipe, options.behaviours, options.output or recipe.folder)
    except ProxyTuneError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on with the stage that was not done.")
        return 1
    return 0


def run(recipe: Recipe, behaviours: Sequence[str], output: Path) -> None:
    """Make and measure everything; seeds are the outer loop, so that an early stop leaves whole trios."""
    base = make_base(recipe)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = load_rows(recipe, tokenizer)
    anti = make_anti(recipe, rows)
    for behaviour in behaviours:
        for seed in recipe.seeds:
            tuned = {
                role: make_tuned(recipe, source, role, behaviour, rows[behaviour], seed) / "model"
                for role, source in (("expert", anti), ("direct", base))
            }
            folders = {"base": base, "anti": anti, **tuned}
            name = f"{behaviour}-nats-{seed}"
            nats = stage(recipe.folder / name, partial(measure_nats, recipe, folders, tokenizer, rows[behaviour]))
            if behaviour == "gsm8k":
                _answer(recipe, folders, tokenizer, rows[behaviour].held_out, nats, seed)
            write_report(recipe, rows, output)
    say(f"report: {output / 'real.json'}")


def _answer(recipe: Recipe, folders: dict[str, Path], tokenizer: Any, rows: Any, nats: Path, seed: int) -> None:
    alpha = choose_alpha(read_json(nats / "nats.json")["validation"], recipe.alphas)
    asked = rows[: recipe.num_generated]
    stage(recipe.folder / f"gsm8k-answers-{seed}", partial(write_answers, recipe, folders, tokenizer, asked, alpha))


if __name__ == "__main__":
    sys.exit(main())
