"""Several whole documents in one window, each with its own positions.

A packed batch has no attention mask: transformers keeps its documents apart by the position ids, and only then
(`neft.data.isolation` checks a model for it).
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neft.data.examples import IGNORED, Example
from neft.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Pack = tuple[Example, ...]
"""The documents of one window, in order."""


@dataclass(frozen=True)
class PackedData:
    """Windows of documents.

    Attributes:
        packs: At least one; every example is in exactly one of them.
        max_length: Window in tokens.
    """

    packs: list[Pack]
    max_length: int

    @property
    def num_documents(self) -> int:
        """Documents in all windows."""
        return sum(len(pack) for pack in self.packs)

    @property
    def num_tokens(self) -> int:
        """Real tokens in all windows."""
        return sum(_length(pack) for pack in self.packs)

    @property
    def efficiency(self) -> float:
        """Real tokens per slot of the windows, at most 1."""
        return self.num_tokens / (len(self.packs) * self.max_length)


def pack(examples: Sequence[Example], *, max_length: int, seed: int = 0) -> PackedData:
    """Packs whole documents, the longest first, each into the fullest window that has room for it (best fit).

    Documents of one length, and then the windows, are shuffled by the seed; the same seed gives the same packs.

    Raises:
        InputError: there is no example, or one is longer than the window.

    >>> lengths = [3, 1, 2, 2]
    >>> packed = pack([Example([0] * length, [0] * length) for length in lengths], max_length=4)
    >>> sorted(sorted(len(example.input_ids) for example in one) for one in packed.packs), packed.efficiency
    ([[1, 3], [2, 2]], 1.0)
    """
    if not examples:
        raise InputError("there is nothing to pack; give at least one example.")
    shuffled = list(examples)
    generator = random.Random(seed)
    generator.shuffle(shuffled)
    shuffled.sort(key=lambda example: len(example.input_ids), reverse=True)
    if len(shuffled[0].input_ids) > max_length:
        raise InputError(
            f"an example has {len(shuffled[0].input_ids)} tokens, more than the window of {max_length}; "
            "tokenize with the same max_length."
        )
    packs: list[list[Example]] = []
    by_space: dict[int, list[int]] = defaultdict(list)
    spaces: list[int] = []
    for example in shuffled:
        length = len(example.input_ids)
        index = bisect_left(spaces, length)
        if index == len(spaces):
            number, space = len(packs), max_length
            packs.append([])
        else:
            space = spaces[index]
            number = by_space[space].pop()
            if not by_space[space]:
                del spaces[index]
        packs[number].append(example)
        if left := space - length:
            if not by_space[left]:
                insort(spaces, left)
            by_space[left].append(number)
    for documents in packs:
        generator.shuffle(documents)
    generator.shuffle(packs)
    return PackedData([tuple(documents) for documents in packs], max_length)


@dataclass(frozen=True)
class PackingCollator:
    """Lays each pack into one row; the rows are as wide as the longest, or as `width` if that is given.

    The slots after a row's last document are a document of their own, of pad tokens without a loss.
    """

    pad_id: int
    width: int | None = None

    def __call__(self, packs: Sequence[Pack]) -> dict[str, Tensor]:
        """Returns int64 `input_ids`, `labels` and `position_ids`, `[B, T]`, and no attention mask.

        Position ids restart at every document, and the first label of each is `IGNORED`: nothing is predicted across
        documents.

        Raises:
            InputError: a pack is longer than `width`.
        """
        import torch

        longest = max(_length(pack) for pack in packs)
        width = longest if self.width is None else self.width
        if longest > width:
            raise InputError(f"a pack has {longest} tokens, more than the width of {width}; pack with the same window.")
        rows = [self._row(pack, width) for pack in packs]
        names = ("input_ids", "labels", "position_ids")
        return {name: torch.tensor(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}

    def _row(self, pack: Pack, width: int) -> tuple[list[int], list[int], list[int]]:
        input_ids: list[int] = []
        labels: list[int] = []
        position_ids: list[int] = []
        for example in pack:
            input_ids += example.input_ids
            labels += [IGNORED, *example.labels[1:]]
            position_ids += range(len(example.input_ids))
        gap = width - len(input_ids)
        return input_ids + [self.pad_id] * gap, labels + [IGNORED] * gap, position_ids + list(range(gap))


def _length(pack: Pack) -> int:
    return sum(len(example.input_ids) for example in pack)
