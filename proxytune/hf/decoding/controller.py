"""How far to draft: fixed, or what the measured times and acceptances say yields the most tokens per second."""

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxytune.options import Speculation

MAX_WIDTH = 8  # tokens the base reads in one pass, at most, unless more were asked for
_WARM = 4  # plain cycles before anything is tried
_MARGIN = 1.03  # what drafting must promise before it is begun
_NARROW, _WIDE = 2, 4  # widths that are tried: kernels for several positions may cost twice as much, then little more
_FIRST_PAUSE, _LAST_PAUSE = 32, 1024  # plain cycles between two trials, doubled each time that one fails
_SHORT_PAUSE = 8  # before the wide trial, without which the narrow one says little
_REFRESH = 64  # drafting cycles between two plain ones, whose time grows with the answer
_DECAY = 0.97  # per cycle, of what is known about acceptance


@dataclass
class _Costs:
    """What is known at one size of batch: seconds of the latest cycles by width, and when to try again."""

    seconds: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=7)))
    num_cycles: int = 0
    pause: int = _FIRST_PAUSE
    next_trial: int = _WARM
    next_refresh: int = 0

    def of(self, width: int) -> float:
        """Return the least of the latest seconds; from a line through the widths next to it where none was measured.

        The least, because noise only ever adds.
        """
        if width in self.seconds:
            return min(self.seconds[width])
        known = sorted(self.seconds)
        if len(known) == 1:
            return self.of(known[0])
        first, second = known[-2:] if width > known[-1] else _around(known, width)
        slope = (self.of(second) - self.of(first)) / (second - first)
        return self.of(second) + max(0.0, slope) * (width - second)


class Controller:
    """Chooses the width of each cycle: 1 is plain decoding, k + 1 drafts k tokens.

    A cycle of width w takes c(w) seconds and yields E(w) = 1 + Σ P(the first i drafts are kept) tokens. Both are
    measured while decoding, c per power of two of the batch's rows, and the width with the most tokens per second runs.
    Where that is 1, a short trial follows now and then, ever more rarely while it does not pay.
    """

    def __init__(self, speculation: Speculation) -> None:
        """`speculation`: "off", "auto", or k."""
        self._fixed = None if speculation == "auto" else 1 if speculation == "off" else int(speculation) + 1
        self._costs: dict[int, _Costs] = defaultdict(_Costs)
        self._asked: list[float] = []
        self._kept: list[float] = []
        self._lock = threading.Lock()

    @property
    def max_width(self) -> int:
        """The widest cycle there will be."""
        return MAX_WIDTH if self._fixed is None else self._fixed

    @property
    def is_automatic(self) -> bool:
        """Whether the width follows measurements."""
        return self._fixed is None

    def width(self, num_rows: int) -> int:
        """Return the width of the next cycle of a batch of so many rows."""
        if self._fixed is not None:
            return self._fixed
        with self._lock:
            return self._best(self._costs[num_rows.bit_length()])

    def observe(self, width: int, num_rows: int, seconds: float, agreed: Sequence[int]) -> None:
        """Learn from a cycle: its seconds, and how many of `width − 1` drafts each row kept."""
        if self._fixed is not None:
            return
        with self._lock:
            costs = self._costs[num_rows.bit_length()]
            costs.num_cycles += 1
            # The first cycles at any width set buffers up.
            if costs.num_cycles > 2:
                costs.seconds[width].append(seconds)
            if width > 1:
                self._learn(width, agreed)

    def expected_tokens(self, width: int) -> float:
        """Return E(width), the tokens of a row that a cycle yields."""
        total, survival, rate = 1.0, 1.0, 0.7
        for place in range(width - 1):
            if place < len(self._asked) and self._asked[place] > 0.5:
                rate = (self._kept[place] + 0.7) / (self._asked[place] + 1.0)
            survival *= rate
            total += survival
        return total

    def _learn(self, width: int, agreed: Sequence[int]) -> None:
        self._asked = [value * _DECAY for value in self._asked] + [0.0] * (width - 1 - len(self._asked))
        self._kept = [value * _DECAY for value in self._kept] + [0.0] * (width - 1 - len(self._kept))
        for place in range(width - 1):
            # A draft counts only where all before it were kept.
            self._asked[place] += sum(count >= place for count in agreed)
            self._kept[place] += sum(count > place for count in agreed)

    def _best(self, costs: _Costs) -> int:
        if costs.num_cycles < _WARM or 1 not in costs.seconds:
            return 1
        if _NARROW not in costs.seconds:
            return self._trial(costs)
        rates = {width: self.expected_tokens(width) / costs.of(width) for width in range(1, MAX_WIDTH + 1)}
        best = max(rates, key=rates.__getitem__)
        if best == 1 or rates[best] < _MARGIN * rates[1]:
            return self._trial(costs)
        costs.pause = _FIRST_PAUSE
        costs.next_trial = costs.num_cycles + costs.pause
        if costs.num_cycles >= costs.next_refresh:
            costs.next_refresh = costs.num_cycles + _REFRESH
            return 1
        return best

    @staticmethod
    def _trial(costs: _Costs) -> int:
        """Return a width to try where it is time to see whether drafting pays by now, else 1."""
        if costs.num_cycles < costs.next_trial:
            return 1
        if _NARROW not in costs.seconds:
            costs.next_trial = costs.num_cycles + _SHORT_PAUSE
            return _NARROW
        costs.next_trial = costs.num_cycles + costs.pause
        costs.pause = min(2 * costs.pause, _LAST_PAUSE)
        return _NARROW if len(costs.seconds) > 2 else _WIDE


def _around(known: Sequence[int], width: int) -> tuple[int, int]:
    """Return the measured widths on both sides of one that lies between them."""
    below = max(value for value in known if value < width)
    return below, min(value for value in known if value > width)
