"""ROUGE-L and BLEU against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from neft.analysis.extras import optional
from neft.analysis.overlap import bleu, rouge_l
from neft.errors import InputError


def test_rouge_l_by_hand():
    """The longest common subsequence a c d is 3 of 4 words in both: F1 75; with 2 of 3 and 2 of 5 it is 50."""
    assert rouge_l(["a b c d"], ["a c d e"]) == pytest.approx(75.0)
    assert rouge_l(["a b x"], ["a q b r s"]) == pytest.approx(100 * 2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert rouge_l(["a b c d", "x"], ["a c d e", "y"]) == pytest.approx(37.5)


def test_rouge_l_ignores_case_and_marks_and_gives_nothing_for_nothing():
    """It reads lower-case words without punctuation; an empty output has 0."""
    assert rouge_l(["The CAT."], ["the cat"]) == pytest.approx(100.0)
    assert rouge_l([""], ["the cat"]) == 0


def test_bleu_by_hand():
    """Precisions 5/6, 3/5, 2/4, 1/3 at equal length: the geometric mean is (1/12)^(1/4)."""
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["a b c d x f"], ["a b c d e f"]) == pytest.approx(by_hand)


def test_bleu_punishes_what_is_too_short():
    """Four right words of a reference of eight: all precisions 1, brevity penalty exp(1 - 8/4)."""
    assert bleu(["a b c d"], ["a b c d e f g h"]) == pytest.approx(100 * math.exp(-1))


def test_bleu_of_equal_texts():
    """Equal texts have 100."""
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100.0)


@pytest.mark.parametrize("metric", [rouge_l, bleu])
def test_outputs_and_references_go_in_pairs(metric):
    """None at all, or not equally many, is an error with both numbers."""
    with pytest.raises(InputError, match="0 outputs and 0 references"):
        metric([], [])
    with pytest.raises(InputError, match="1 outputs and 2 references"):
        metric(["a"], ["a", "b"])


def test_a_missing_package_is_named():
    """What is not installed is an error with the way to install it; a broken module keeps its own."""
    with pytest.raises(InputError, match=r"the plot needs the package nowhere: pip install 'proxytune\[neft\]'"):
        optional("nowhere.at.all", "the plot")
    with pytest.raises(ModuleNotFoundError):
        optional("json.nothing_like_it", "the plot")
