"""Lengths, repetition and diversity against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from neft.analysis.diversity import (
    NgramCount,
    count_ngrams,
    log_diversity_paper,
    log_diversity_plain,
    repetition_percent,
    text_statistics,
)

# Seven words. 2-grams: the cat, cat sat, sat the, the cat, cat sat, sat down: 4 different of 6.
# 3-grams: the cat sat, cat sat the, sat the cat, the cat sat, cat sat down: 4 of 5. 4-grams: 4 of 4.
CAT = "the cat sat the cat sat down"


def test_counts_of_a_known_text():
    """The cat text has 4 of 6, 4 of 5 and 4 of 4 different 2-, 3- and 4-grams; one less each without the last."""
    assert [count_ngrams(CAT, size) for size in (2, 3, 4)] == [NgramCount(4, 6), NgramCount(4, 5), NgramCount(4, 4)]
    published = [count_ngrams(CAT, size, drops_last=True) for size in (2, 3, 4)]
    assert published == [NgramCount(3, 5), NgramCount(3, 4), NgramCount(3, 3)]


def test_two_gram_repetition():
    """Two repeats in six 2-grams are 33.3 %; no repeat is 0; a single word has no 2-gram."""
    assert repetition_percent(CAT) == pytest.approx(100 * 2 / 6)
    assert repetition_percent("a b c") == 0
    assert repetition_percent("alone") is None
    assert repetition_percent("") is None


def test_plain_log_diversity_by_hand():
    """Repeats 1/3, 1/5 and 0: -log(1 - 2/3 * 4/5 * 1) = -log(7/15)."""
    assert log_diversity_plain([CAT]) == pytest.approx(-math.log(7 / 15))


def test_published_log_diversity_by_hand():
    """Without the last n-grams the repeats are 2/5, 1/4 and 0, each divided by 100: -log(1 - 0.996 * 0.9975)."""
    assert log_diversity_paper(CAT) == pytest.approx(-math.log(1 - 0.996 * 0.9975))


def test_published_log_diversity_is_capped_at_20():
    """A text that repeats nothing has exactly 20, where the plain form is infinite."""
    assert log_diversity_paper("a b c d e") == 20.0
    assert log_diversity_plain(["a b c d e"]) == math.inf


def test_published_log_diversity_misses_a_repeat_at_the_end():
    """The last n-gram is not counted: a repeat that only it makes leaves the text at 20."""
    assert log_diversity_paper("a b c d e a b") == 20.0
    assert log_diversity_plain(["a b c d e a b"]) < math.inf


def test_short_texts_have_no_published_value():
    """Four words have no 4-gram once the last is dropped; the plain form reads them."""
    assert log_diversity_paper("a b c d") is None
    assert log_diversity_plain(["a b c d"]) == math.inf
    assert log_diversity_plain(["a b c"]) is None


def test_a_text_of_one_word_is_not_diverse():
    """Ten times the same word: repeats 8/9, 7/8, 6/7, so -log(1 - 1/9 * 1/8 * 1/7), about 0."""
    assert log_diversity_plain(["no " * 10]) == pytest.approx(-math.log(1 - 1 / 504))


def test_plain_log_diversity_pools_counts_but_not_texts():
    """Two texts that say the same repeat nothing in themselves; with the cat text the counts add up."""
    assert log_diversity_plain(["a b c d e", "a b c d e"]) == math.inf
    pooled = (4 + 4) / (6 + 4) * (4 + 3) / (5 + 3) * (4 + 2) / (4 + 2)
    assert log_diversity_plain([CAT, "a b c d e"]) == pytest.approx(-math.log(1 - pooled))


def test_statistics_of_texts():
    """Means over texts: characters, words, and repetition of those that have 2-grams."""
    statistics = text_statistics([CAT, "a  b", ""])
    assert statistics.num_texts == 3
    assert statistics.num_chars == pytest.approx((len(CAT) + 4 + 0) / 3)
    assert statistics.num_words == pytest.approx((7 + 2 + 0) / 3)
    assert statistics.repetition_2_percent == pytest.approx((100 / 3 + 0) / 2)
    assert statistics.log_diversity_paper == pytest.approx(log_diversity_paper(CAT))
    assert text_statistics(["a b c d e"]).log_diversity_plain is None
