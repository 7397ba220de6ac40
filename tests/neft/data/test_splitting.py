"""The held-out split."""

from __future__ import annotations

import random

import pytest

from neft.data import Document, Segment, num_shared_prompts, split
from neft.errors import DataError


def _document(prompt: str, row: int) -> Document:
    return Document((Segment(prompt, is_target=False), Segment(f"answer {row}", is_target=True)), row)


DOCUMENTS = [_document(f"prompt {row}", row) for row in range(1, 11)]


def test_the_split_parts_the_rows():
    """Both parts together are all rows, in order, the same for a seed, and neither is empty."""
    train, held_out = split(DOCUMENTS, eval_fraction=0.3, seed=1)
    assert len(held_out) == 3
    assert sorted(d.row for d in train + held_out) == list(range(1, 11))
    assert [d.row for d in train] == sorted(d.row for d in train)
    assert (train, held_out) == split(DOCUMENTS, eval_fraction=0.3, seed=1)
    assert held_out != split(DOCUMENTS, eval_fraction=0.3, seed=2)[1]
    for fraction in (0.001, 0.999):
        assert all(split(DOCUMENTS, eval_fraction=fraction, seed=0))
    with pytest.raises(DataError, match="one row"):
        split(DOCUMENTS[:1], eval_fraction=0.5, seed=0)


def test_the_order_of_the_rows_does_not_matter():
    """Shuffled rows give the same held-out documents."""
    wanted = {d.row for d in split(DOCUMENTS, eval_fraction=0.4, seed=3)[1]}
    for seed in range(5):
        shuffled = random.Random(seed).sample(DOCUMENTS, len(DOCUMENTS))
        assert {d.row for d in split(shuffled, eval_fraction=0.4, seed=3)[1]} == wanted


def test_the_same_prompt_never_crosses_the_split():
    """Rows of one prompt stay together, and the held-out rows never exceed the fraction."""
    documents = [_document(f"prompt {row % 7}", row) for row in range(100)]
    for seed in range(20):
        train, held_out = split(documents, eval_fraction=0.35, seed=seed)
        assert num_shared_prompts(train, held_out) == 0
        assert 20 <= len(held_out) <= 35


def test_a_prompt_with_more_rows_than_are_wanted():
    """If no prompt fits the fraction, the one with the fewest rows is held out; a single prompt cannot be split."""
    documents = [_document("a" if row < 5 else "b", row) for row in range(8)]
    assert [d.row for d in split(documents, eval_fraction=0.1, seed=0)[1]] == [5, 6, 7]
    with pytest.raises(DataError, match="all 5 rows have the same prompt"):
        split(documents[:5], eval_fraction=0.2, seed=0)


def test_rows_without_a_prompt_are_told_apart_by_their_text():
    """Plain texts, and completions after an empty prompt, are split one by one; equal texts stay together."""
    texts = [Document((Segment(f"text {row // 2}", is_target=True),), row) for row in range(20)]
    empty = [_document("", row) for row in range(10)]
    train, held_out = split(texts, eval_fraction=0.3, seed=0)
    assert len(held_out) == 6
    assert num_shared_prompts(train, held_out) == 0
    assert len(split(empty, eval_fraction=0.3, seed=0)[1]) == 3


def test_shared_prompts_of_two_files_are_counted():
    """Held-out rows whose prompt is trained on are counted by row."""
    held_out = [_document("prompt 1", 1), _document("prompt 1", 2), _document("other", 3)]
    assert num_shared_prompts(DOCUMENTS, held_out) == 2
