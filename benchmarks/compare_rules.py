"""Methods of decoding side by side on the demo world: what each brings on held-out people, and what a token costs.

Each method's α is chosen by the steered loss of other questions, as `proxytune tune-alpha` does, unless the method or
`--alpha` sets it. Figures: accuracy of greedy answers, nats per token of the true answers (infinite where a mask rules
one out), seconds as a multiple of the base's alone (a batch of 100 rows, 32 tokens each, no drafts; median of
interleaved rounds in one process), and the same by the bytes of weights that a token must read. `--rule` adds a rule
over the trio's pair, as `proxytune generate --rule` takes it; `--method` picks methods by name.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.scoring.intervals import bootstrap, wilson
from benchmarks.tables import aligned
from proxytune import ProxyGenerator
from proxytune.cli.stderr import note
from proxytune.cli.tune_alpha import search
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, answer_value
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from proxytune.demo.report import read_recorded
from proxytune.demo.text import Question
from proxytune.demo.tuning import tuning_questions
from proxytune.errors import OptionError
from proxytune.hf.decoding.stats import memory_roofline
from proxytune.rules import rule_of

EXAMPLE = "  proxytune bench compare-rules --rule contrastive,beta=0.2 --rule proxy,schedule=first:4"

_GRID = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_NUM_CHOOSING = 100
_BATCH = 100
_TRIO = trio_path()
_EXPERT, _ANTI = _TRIO / "expert", _TRIO / "anti"
_PAIR = {"expert": _EXPERT, "anti": _ANTI}


@dataclass(frozen=True)
class Method:
    """A method as arguments of `ProxyGenerator`; `alpha` is None where it is to be chosen."""

    settings: Mapping[str, Any] = field(default_factory=lambda: _PAIR)
    alpha: float | None = None


METHODS = {
    "base alone": Method(alpha=0.0),
    "proxy tuning": Method(),
    "nucleus first": Method({**_PAIR, "rule": "nucleus,p=0.9"}),
    "plausible tokens": Method({**_PAIR, "rule": "contrastive,beta=0.1"}),
    "first 8 tokens": Method({**_PAIR, "rule": "proxy,schedule=first:8"}),
    "unsure base": Method({**_PAIR, "rule": "proxy,gate=entropy:0.5"}),
    "contrastive decoding": Method({"amateur": _ANTI}),
    "product": Method({"domain": _EXPERT}),
    "mixture": Method({"domain": _EXPERT, "rule": "mixture"}, 0.5),
    "union": Method({"domain": _EXPERT, "rule": "union"}),
    "intersection": Method({"domain": _EXPERT, "rule": "intersection"}),
    "nudging": Method({"domain": _EXPERT, "rule": "mixture,gate=best:0.4"}, 1.0),
    "reward model": Method({"reward_model": _EXPERT}),
    "negative prompt": Method({"negative_prompt": "I heard it somewhere. {prompt}"}),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--method", action="append", metavar="NAME", help=f"of {', '.join(METHODS)}; all by default")
    command.add_argument(
        "--rule", action="append", default=[], metavar="RULE", help="another rule over the trio's pair"
    )
    command.add_argument("--alpha", type=float, metavar="NUMBER", help="for every method that does not set its own")
    command.add_argument("--limit", type=int, metavar="N", help="of the questions (500)")
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="of the measured time (3)")


def run(args: argparse.Namespace) -> int:
    """Measure the methods one after the other and write the table to standard output."""
    if args.rounds < 1 or (args.limit is not None and args.limit < 1):
        raise OptionError(f"rounds is {args.rounds} and limit {args.limit}: they must be whole numbers above 0.")
    methods = _chosen(args)
    torch.set_num_threads(1)
    world = Recipe(seed=read_recorded(_TRIO)["seed"]).world()
    questions = held_out_questions(world)[: args.limit]
    choosing = tuning_questions(world)[1][: min(_NUM_CHOOSING, len(questions))]
    lines = [["method", "rule", "alpha", "accuracy", "nats per token", "time", "bytes"]]
    for name, method in methods.items():
        note(f"{name} …")
        lines.append([name, *_figures(method, questions, choosing, args)])
    sys.stdout.write(aligned(lines))
    sys.stdout.write(
        f"{len(questions)} questions; 95 % intervals in brackets; time and bytes are per token, base = 1.\n"
    )
    return 0


def _chosen(args: argparse.Namespace) -> dict[str, Method]:
    """Return the methods that were asked for; rules that were given come last."""
    unknown = next((name for name in args.method or () if name not in METHODS), None)
    if unknown is not None:
        raise OptionError(f"--method {unknown!r}: it must be one of {', '.join(METHODS)}.")
    rules = {str(rule_of(rule)): Method({**_PAIR, "rule": rule}) for rule in args.rule}
    names = args.method or ([] if rules else list(METHODS))
    return {name: METHODS[name] for name in names} | rules


def _figures(
    method: Method, questions: Sequence[Question], choosing: Sequence[Question], args: argparse.Namespace
) -> list[str]:
    """Return the cells of a method's line."""
    generator = ProxyGenerator(_TRIO / "base", dtype="float32", speculation="off", **method.settings)
    alpha = method.alpha if method.alpha is not None else args.alpha
    if alpha is None:
        losses = search(lambda value: _mean(_nats(generator, choosing, value)), _GRID, num_refinements=2)
        alpha = min(losses, key=losses.__getitem__)
    nats = _nats(generator, questions, alpha)
    prompts = [question.prompt for question in questions]
    rows = generator.generate(prompts, alpha=alpha, max_new_tokens=MAX_NEW_TOKENS, batch_size=_BATCH)
    num_right = sum(
        answer_value(row.text, question.fact) == question.fact.truth
        for row, question in zip(rows, questions, strict=True)
    )
    ratios = []
    for _ in range(args.rounds):
        alone, steered = (_seconds(generator, prompts[:_BATCH], value) for value in (0.0, alpha))
        ratios.append(steered / alone)
    low, high = wilson(num_right, len(questions))
    accuracy = f"{num_right / len(questions):.3f} [{low:.3f}, {high:.3f}]"
    loss = f"{_mean(nats):.3f}"
    if all(map(math.isfinite, nats)):
        loss += " [{:.3f}, {:.3f}]".format(*bootstrap(nats))
    floor = memory_roofline(generator.model).ratio if alpha != 0 else 1.0
    rule = str(generator.model.rule)
    return [rule, f"{alpha:g}", accuracy, loss, f"{statistics.median(ratios):.2f}", f"{floor:.2f}"]


def _nats(generator: ProxyGenerator, questions: Sequence[Question], alpha: float) -> list[float]:
    """Return nats per token of each question's true answer with its end."""
    rows = [question.row() for question in questions]
    answers = [row["completion"] + generator.tokenizer.eos_token for row in rows]
    scores = generator.score([row["prompt"] for row in rows], answers, alpha=alpha, batch_size=_BATCH)
    return [-score.total / len(score.logprobs) for score in scores]


def _seconds(generator: ProxyGenerator, prompts: Sequence[str], alpha: float) -> float:
    """Return the seconds of a batch that goes on to the last token in every row."""
    rows = generator.generate(prompts, alpha=alpha, max_new_tokens=MAX_NEW_TOKENS, batch_size=_BATCH, ignore_eos=True)
    return rows[0].timing.seconds


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
