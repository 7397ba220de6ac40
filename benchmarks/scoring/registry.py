"""The scorers by name; a new one is one module and one line here."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring import alpacaeval, gsm8k, toxigen, truthfulqa_letter, truthfulqa_open
from benchmarks.scoring.length_controlled import read_difficulties, read_weights
from benchmarks.scoring.rows import Row, read_rows
from benchmarks.scoring.score import Score
from proxytune.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scorer of one task's file.

    Attributes:
        summary: One line for the help.
        score: From the file's rows and the parsed options to the score.
        add_arguments: Adds the options only this task has.
    """

    summary: str
    score: Callable[[Sequence[Row], argparse.Namespace], Score]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None


def _add_alpacaeval_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length-controlled win rate")
    group.add_argument("--glm-weights", type=Path, metavar="CSV", help="alpaca-eval's published regression weights")
    group.add_argument(
        "--instruction-difficulty", type=Path, metavar="CSV", help="index and difficulty of each instruction"
    )
    group.add_argument(
        "--reference-outputs",
        type=Path,
        metavar="FILE",
        help="the reference's outputs in AlpacaEval's order: rows are matched by instruction, not by place",
    )


def _add_toxigen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classifier", metavar="MODEL", help="judge all rows by this model, as tomh/toxigen_roberta")
    parser.add_argument("--toxic-label", type=int, default=1, metavar="N", help="the classifier's label for toxic (1)")


def _score_toxigen(rows: Sequence[Row], args: argparse.Namespace) -> Score:
    if args.classifier is None:
        return toxigen.score(rows)
    from benchmarks.scoring.toxicity import ToxicityClassifier

    return toxigen.score(rows, ToxicityClassifier(args.classifier, toxic_label=args.toxic_label).are_toxic)


def _score_alpacaeval(rows: Sequence[Row], args: argparse.Namespace) -> Score:
    weights, difficulty, reference = args.glm_weights, args.instruction_difficulty, args.reference_outputs
    if weights is None and difficulty is None and reference is None:
        return alpacaeval.score(rows)
    if weights is None or difficulty is None:
        raise OptionError("the length-controlled rate needs both --glm-weights and --instruction-difficulty.")
    control = alpacaeval.LengthControl(
        weights=read_weights(weights),
        difficulties=read_difficulties(difficulty),
        instructions=None if reference is None else [row.text("instruction") for row in read_rows(reference)],
    )
    return alpacaeval.score(rows, length_control=control)


SCORERS = {
    truthfulqa_letter.NAME: Scorer(
        summary="TruthfulQA, lettered choices: accuracy", score=lambda rows, _: truthfulqa_letter.score(rows)
    ),
    truthfulqa_open.NAME: Scorer(
        summary="TruthfulQA, open-ended, judged: true, informative, both",
        score=lambda rows, _: truthfulqa_open.score(rows),
    ),
    gsm8k.NAME: Scorer(summary="GSM8K: exact match of the last number", score=lambda rows, _: gsm8k.score(rows)),
    toxigen.NAME: Scorer(
        summary="ToxiGen: share of toxic continuations, by the rows' verdicts or a classifier's",
        score=_score_toxigen,
        add_arguments=_add_toxigen_arguments,
    ),
    alpacaeval.NAME: Scorer(
        summary="AlpacaEval 1 and 2, judged: win rate, length-controlled rate",
        score=_score_alpacaeval,
        add_arguments=_add_alpacaeval_arguments,
    ),
}
