"""Packing: whole documents, few windows, nothing predicted across documents."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from neft.data import Example, PackingCollator, pack
from neft.errors import InputError
from neft.rule import document_ids


def _example(length: int, start: int = 10) -> Example:
    ids = list(range(start, start + length))
    return Example(ids, [-100, *ids[1:]])


def _lengths(packed):
    return sorted(sorted(len(example.input_ids) for example in one) for one in packed.packs)


def _random_examples(count: int, longest: int) -> list[Example]:
    generator = random.Random(7)
    return [_example(generator.randint(1, longest), start=n) for n in range(count)]


def test_best_fit_by_hand():
    """7, 5, 4, 3, 1 in windows of 10: 7 + 3 and 5 + 4 + 1, both full."""
    packed = pack([_example(length) for length in (3, 5, 1, 7, 4)], max_length=10)
    assert _lengths(packed) == [[1, 4, 5], [3, 7]]
    assert (packed.num_documents, packed.num_tokens, packed.efficiency) == (5, 20, 1.0)


def test_the_fullest_window_with_room_is_taken():
    """6, 5, 4 in windows of 10: 4 goes to the 6, not to the 5, and the efficiency is 15 of 20."""
    packed = pack([_example(length) for length in (4, 5, 6)], max_length=10)
    assert _lengths(packed) == [[4, 6], [5]]
    assert packed.efficiency == 0.75


def test_every_document_is_packed_once():
    """All examples are there, whole, in windows that hold them, and no two windows could be one."""
    examples = _random_examples(3000, 64)
    packed = pack(examples, max_length=64, seed=3)
    assert Counter(map(id, examples)) == Counter(id(example) for one in packed.packs for example in one)
    sizes = sorted(sum(len(example.input_ids) for example in one) for one in packed.packs)
    assert sizes[-1] <= 64
    assert sizes[0] + sizes[1] > 64
    assert packed.efficiency > 0.99


def test_the_fast_search_is_best_fit():
    """The windows are those of a plain search over all of them, for 300 random documents."""
    examples = _random_examples(300, 40)
    spaces: list[int] = []
    for length in sorted((len(example.input_ids) for example in examples), reverse=True):
        rooms = [space for space in spaces if space >= length]
        if rooms:
            spaces[spaces.index(min(rooms))] -= length
        else:
            spaces.append(50 - length)
    sizes = [sum(len(example.input_ids) for example in one) for one in pack(examples, max_length=50).packs]
    assert sorted(sizes) == sorted(50 - space for space in spaces)


def test_the_seed_decides_the_order():
    """The same seed gives the same packs, another gives others; as many windows either way."""
    examples = _random_examples(200, 30)
    assert pack(examples, max_length=32, seed=1) == pack(examples, max_length=32, seed=1)
    other = pack(examples, max_length=32, seed=2)
    assert other.packs != pack(examples, max_length=32, seed=1).packs
    assert len(other.packs) == len(pack(examples, max_length=32, seed=1).packs)


def test_what_cannot_be_packed():
    """No example, or one that is longer than the window, is refused with the numbers."""
    with pytest.raises(InputError, match="nothing to pack"):
        pack([], max_length=8)
    with pytest.raises(InputError, match="9 tokens, more than the window of 8"):
        pack([_example(2), _example(9)], max_length=8)


def test_a_batch_by_hand():
    """Positions restart, first labels are ignored, padding is a document of its own, and there is no mask."""
    one, two, three = Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [8, 9]), Example([4], [4])
    batch = PackingCollator(pad_id=0)([(one, two), (three,)])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    documents = document_ids((2, 5), position_ids=batch["position_ids"])
    assert documents.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]


def test_rows_of_a_fixed_width():
    """With `width` every batch has that many columns; a longer pack is refused."""
    batch = PackingCollator(pad_id=0, width=4)([(_example(2),)])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1]]
    with pytest.raises(InputError, match="5 tokens, more than the width of 4"):
        PackingCollator(pad_id=0, width=4)([(_example(2), _example(3))])
