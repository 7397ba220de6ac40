"""Lengths, repetition and diversity of texts, as pure functions of whitespace words.

Source: arXiv 2310.05914, section 5. Its log-diversity is that of the code of arXiv 2306.04634, most of which is from
that of 2202.06417.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SIZES = (2, 3, 4)
_PUBLISHED_CAP = 20.0


@dataclass(frozen=True, slots=True)
class NgramCount:
    """The number of n-grams of a text, and of different ones."""

    unique: int
    total: int

    @property
    def repetition(self) -> float | None:
        """The share that repeats an earlier one, in [0, 1); None without any n-gram."""
        return None if self.total == 0 else 1 - self.unique / self.total


def count_ngrams(text: str, size: int, *, drops_last: bool = False) -> NgramCount:
    """Counts the n-grams of whitespace words in a text; `drops_last` leaves the last one out, as the paper's code does.

    >>> count_ngrams("a b a b a b", 2), count_ngrams("a b a b a b", 2, drops_last=True)
    (NgramCount(unique=2, total=5), NgramCount(unique=2, total=4))
    """
    words = text.split()
    end = len(words) - size + (0 if drops_last else 1)
    grams = [tuple(words[start : start + size]) for start in range(max(0, end))]
    return NgramCount(len(set(grams)), len(grams))


def repetition_percent(text: str, size: int = 2) -> float | None:
    """Returns 100 · (1 − different n-grams / n-grams); None for a text with none.

    >>> repetition_percent("a b a b a b")
    60.0
    """
    share = count_ngrams(text, size).repetition
    return None if share is None else 100 * share


def log_diversity_paper(text: str) -> float | None:
    """Returns the log-diversity exactly as published: −log(max(1 − Π (1 − r/100), e⁻²⁰)) over 2-, 3- and 4-grams.

    Its r are shares where the formula means percents, so they are divided by 100 once too often; the last n-gram of the
    text is not counted; a text that repeats nothing gets 20. Use it to compare with the paper's 15.97 and 16.41. The
    published code fails on texts below five words; here they have no value.

    >>> log_diversity_paper("one two three four five six")
    20.0
    """
    shares = [count_ngrams(text, size, drops_last=True).repetition for size in _SIZES]
    product = 1.0
    for share in shares:
        if share is None:
            return None
        product *= 1 - share / 100
    return min(_PUBLISHED_CAP, -math.log(max(1 - product, math.exp(-_PUBLISHED_CAP))))


def log_diversity_plain(texts: Sequence[str]) -> float | None:
    """Returns −log(1 − Π (1 − r)) over 2-, 3- and 4-grams, with r the share of repeats in all texts together.

    Repeats are counted within each text. The texts are pooled because a single one that repeats nothing is infinitely
    diverse by this formula; so are texts of which none repeats anything.

    Returns:
        At least 0, perhaps infinite; None if no text has four words.

    >>> round(log_diversity_plain(["a b a b a b"]), 4)  # r = 3/5, 2/4, 1/3: 1 - 2/5 * 1/2 * 2/3 = 13/15
    0.1431
    """
    product = 1.0
    for size in _SIZES:
        counts = [count_ngrams(text, size) for text in texts]
        total = sum(count.total for count in counts)
        if total == 0:
            return None
        product *= sum(count.unique for count in counts) / total
    return math.inf if product == 1 else -math.log(1 - product) + 0.0


@dataclass(frozen=True, kw_only=True)
class TextStatistics:
    """Statistics of texts without their targets.

    Attributes:
        num_texts: Number of texts.
        num_chars: Mean characters.
        num_words: Mean whitespace words.
        repetition_2_percent: Mean 2-gram repetition of the texts with at least two words.
        log_diversity_paper: Mean of `log_diversity_paper` of the texts with at least five words.
        log_diversity_plain: `log_diversity_plain` of all texts; None also where it is infinite.
    """

    num_texts: int
    num_chars: float
    num_words: float
    repetition_2_percent: float | None
    log_diversity_paper: float | None
    log_diversity_plain: float | None


def text_statistics(texts: Sequence[str]) -> TextStatistics:
    """Returns the statistics of at least one text."""
    plain = log_diversity_plain(texts)
    return TextStatistics(
        num_texts=len(texts),
        num_chars=sum(map(len, texts)) / len(texts),
        num_words=sum(len(text.split()) for text in texts) / len(texts),
        repetition_2_percent=_mean([repetition_percent(text) for text in texts]),
        log_diversity_paper=_mean([log_diversity_paper(text) for text in texts]),
        log_diversity_plain=None if plain == math.inf else plain,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
