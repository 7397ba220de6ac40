"""ROUGE-L and BLEU of outputs against references, by the packages that papers quote."""

from __future__ import annotations

from collections.abc import Sequence

from neft.analysis.extras import optional
from neft.errors import InputError


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Returns the mean ROUGE-L F1 in percent, without stemming.

    The `rouge-score` package reads lower-case Latin letters and digits only: other scripts score 0.

    Raises:
        InputError: there are none, or not equally many.
    """
    _check(outputs, references)
    scorer = optional("rouge_score.rouge_scorer", "ROUGE-L").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(outputs, references, strict=True)
    scores = [scorer.score(reference, output)["rougeL"].fmeasure for output, reference in pairs]
    total: float = sum(scores)
    return 100 * total / len(scores)


def bleu(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Returns corpus BLEU in percent: sacrebleu's default (4-grams, its 13a tokens, exponential smoothing).

    Raises:
        InputError: there are none, or not equally many.
    """
    _check(outputs, references)
    score: float = optional("sacrebleu", "BLEU").corpus_bleu(list(outputs), [list(references)]).score
    return score


def _check(outputs: Sequence[str], references: Sequence[str]) -> None:
    if not outputs or len(outputs) != len(references):
        raise InputError(
            f"{len(outputs)} outputs and {len(references)} references; give as many of both, at least one."
        )
