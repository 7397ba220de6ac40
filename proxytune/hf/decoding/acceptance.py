"""How often drafts are right: by their place in the draft, and by how sure the drafter was."""

import math
import operator
from collections.abc import Sequence
from itertools import accumulate

_PRIOR, _PRIOR_WEIGHT = 0.7, 2.0  # what a draft is taken for of whose kind few were seen
_PLACE_DECAY = 0.97  # per cycle that drafts, of what is known by place
_KIND_MEMORY = 64  # drafts of a kind that count
_KIND_DECAY = 0.997  # per cycle, of what is known by kind: what was given up is tried again some time
_TRUST_DECAY, _IDLE_TRUST_DECAY = 0.9, 0.99  # per cycle that drafts, and that does not
_TRUST_PRIOR = 0.3  # drafts
_NUM_KINDS = 10


class Acceptance:
    """Counts of drafts asked and kept, old ones for less. A draft counts only where all before it were kept.

    What a drafter's probabilities mean is learnt slowly. `trust` follows the text within some cycles.
    """

    def __init__(self) -> None:
        self._asked: list[float] = []
        self._kept: list[float] = []
        self._asked_of_kind = [0.0] * _NUM_KINDS
        self._kept_of_kind = [0.0] * _NUM_KINDS
        self._num_expected = 0.0
        self._num_kept = 0.0

    def learn(self, width: int, agreed: Sequence[int], sureness: Sequence[Sequence[float]] | None = None) -> None:
        """Count a cycle: how many of `width − 1` drafts each row kept, and per row what the drafter gave each draft."""
        if width > 1:
            self._learn_places(width, agreed)
        if sureness is not None:
            self._learn_trust(width, agreed, sureness)
            self._learn_kinds(agreed, sureness)

    @property
    def trust(self) -> float:
        """What `rate` is worth by the latest cycles: 1, unless less than half of what it promised came true."""
        return min(1.0, 2 * (self._num_kept + _TRUST_PRIOR) / (self._num_expected + _TRUST_PRIOR))

    def rate(self, probability: float) -> float:
        """Return how often a draft is right, all before it being so, to which the drafter gives this probability."""
        kind = _kind(probability)
        return (self._kept_of_kind[kind] + _PRIOR * _PRIOR_WEIGHT) / (self._asked_of_kind[kind] + _PRIOR_WEIGHT)

    def typical_rate(self) -> float:
        """Return the same for a draft of which nothing is known yet."""
        return (sum(self._kept) + _PRIOR) / (sum(self._asked) + 1)

    def expected_tokens(self, width: int) -> float:
        """Return E(width), the tokens of a row that a cycle yields."""
        total, survival, rate = 1.0, 1.0, _PRIOR
        for place in range(width - 1):
            if place < len(self._asked) and self._asked[place] > 0.5:
                rate = (self._kept[place] + _PRIOR) / (self._asked[place] + 1.0)
            survival *= rate
            total += survival
        return total

    def _learn_trust(self, width: int, agreed: Sequence[int], sureness: Sequence[Sequence[float]]) -> None:
        decay = _TRUST_DECAY if width > 1 else _IDLE_TRUST_DECAY
        expected = sum(sum(accumulate(map(self.rate, row), operator.mul)) for row in sureness)
        # Per row, so that a large batch says no more than a small one.
        self._num_expected = self._num_expected * decay + expected / len(sureness)
        self._num_kept = self._num_kept * decay + sum(agreed) / len(sureness)

    def _learn_kinds(self, agreed: Sequence[int], sureness: Sequence[Sequence[float]]) -> None:
        self._asked_of_kind = [value * _KIND_DECAY for value in self._asked_of_kind]
        self._kept_of_kind = [value * _KIND_DECAY for value in self._kept_of_kind]
        for count, row in zip(agreed, sureness, strict=True):
            for place, probability in enumerate(row[: count + 1]):
                kind = _kind(probability)
                self._asked_of_kind[kind] += 1 - self._asked_of_kind[kind] / _KIND_MEMORY
                self._kept_of_kind[kind] += (place < count) - self._kept_of_kind[kind] / _KIND_MEMORY

    def _learn_places(self, width: int, agreed: Sequence[int]) -> None:
        missing = width - 1 - len(self._asked)
        self._asked = [value * _PLACE_DECAY for value in self._asked] + [0.0] * missing
        self._kept = [value * _PLACE_DECAY for value in self._kept] + [0.0] * missing
        for place in range(width - 1):
            self._asked[place] += sum(count >= place for count in agreed)
            self._kept[place] += sum(count > place for count in agreed)


def _kind(probability: float) -> int:
    """Return the class of a probability: they get finer towards 1, where most drafts are.

    >>> [_kind(probability) for probability in (0.0, 0.3, 0.5, 0.75, 0.9, 0.99, 1.0)]
    [0, 0, 1, 3, 4, 9, 9]
    """
    doubt = max(1.0 - probability, 2.0**-_NUM_KINDS)
    return min(_NUM_KINDS - 1, int(-1.5 * math.log2(doubt)))
