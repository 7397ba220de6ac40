"""Experts of the demo world tuned in several ways, and what each is worth alone and in steering, over seeds.

`python -m benchmarks.expert_tuning --output runs.jsonl` tunes the bundled trio's anti as the demo does, but for noise,
rows and loss: `plain` (the expert's own), `chosen` (its own, stopped by the steered held-out loss) and `against` (the
steered loss throughout, `neft train --base`). Every run is a line; one that is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import neft
from benchmarks.tables import aligned
from neft.ablation.statistics import t_interval
from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, score
from proxytune.demo.live import answers_of, held_out_questions
from proxytune.demo.recipe import EXPERT_PLAN, Recipe
from proxytune.demo.text import Question
from proxytune.demo.tuning import tuning_questions

_SETTING = ("rows", "how", "alpha")
_FIGURES = ("nats", "accuracy", "expert_accuracy", "steps")
_BATCH = 100


def measure(setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what an expert of this setting and seed is worth on the demo's questions: nats are per answer token."""
    world, trio = Recipe().world(), trio_path()
    questions = held_out_questions(world)
    with tempfile.TemporaryDirectory() as folder:
        expert = Path(folder, "expert")
        result = neft.train(_config(setting, seed, Path(folder), expert))
        generator = ProxyGenerator(base=trio / "base", expert=expert, anti=trio / "anti", dtype="float32")
        prompts = [question.prompt for question in questions]
        steered = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=_BATCH)
        return {
            "nats": _nats(generator, questions),
            "accuracy": score([done.text for done in steered], questions).accuracy,
            "expert_accuracy": score(answers_of(expert, questions), questions).accuracy,
            "steps": result.saved_step,
            "eval_loss": result.eval_loss,
        }


def _config(setting: dict[str, Any], seed: int, folder: Path, output: Path) -> neft.TrainingConfig:
    learned, stopping = tuning_questions(Recipe().world())
    learned = random.Random(seed).sample(learned, min(setting["rows"], len(learned)))
    for name, questions in (("train", learned), ("held_out", stopping)):
        lines = [json.dumps(question.row()) + "\n" for question in questions]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    how = setting["how"]
    return neft.TrainingConfig(
        model=str(trio_path() / "anti"),
        base=None if how == "plain" else str(trio_path() / "base"),
        eval_with_base=how == "chosen",
        data=folder / "train.jsonl",
        eval_data=folder / "held_out.jsonl",
        output=output,
        alpha=setting["alpha"],
        learning_rate=EXPERT_PLAN.learning_rate,
        max_steps=EXPERT_PLAN.max_steps,
        batch_size=EXPERT_PLAN.batch_size,
        eval_every=EXPERT_PLAN.eval_every,
        early_stopping_patience=EXPERT_PLAN.patience,
        seed=seed,
        show_progress=False,
    )


def _nats(generator: ProxyGenerator, questions: Sequence[Question]) -> float:
    tokenizer = AutoTokenizer.from_pretrained(trio_path() / "base")
    rows = [question.row() for question in questions]
    answers = [
        [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for row in rows
    ]
    scores = generator.score([row["prompt"] for row in rows], answers, batch_size=_BATCH)
    return -sum(one.total for one in scores) / sum(len(one.logprobs) for one in scores)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return a line per setting: means and 95 % t intervals over the seeds."""
    lines = [["rows", "loss", "noise", "seeds", "steered nats", "steered %", "M+ %", "steps"]]
    by_setting: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        by_setting.setdefault(tuple(run[name] for name in _SETTING), []).append(run)
    for (rows, how, alpha), group in sorted(by_setting.items()):
        nats, accuracy, expert, steps = (t_interval([run[name] for run in group]) for name in _FIGURES)
        percent = [f"{100 * one.mean:.1f} ± {100 * (one.half_width or 0):.1f}" for one in (accuracy, expert)]
        lines.append([str(rows), how, f"{alpha:g}", str(len(group)), nats.text(4), *percent, f"{steps.mean:.0f}"])
    return aligned(lines)


def main() -> int:
    """Run what is missing, and write the table to standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expert_tuning", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a line per run")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 800], metavar="N", help="tuning rows (16 800)")
    parser.add_argument("--how", nargs="+", default=["plain", "against"], choices=["plain", "chosen", "against"])
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.0, 5.0], metavar="F", help="noise (0 5)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each setting (3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    cells = itertools.product(range(options.seeds), options.rows, options.how, options.alphas)
    for seed, *values in cells:
        setting = dict(zip(_SETTING, values, strict=True))
        if any(run | setting | {"seed": seed} == run for run in runs):
            continue
        runs.append({**setting, "seed": seed, **measure(setting, seed)})
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(runs[-1]) + "\n")
    sys.stdout.write(table(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
