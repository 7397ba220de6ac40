"""How far to draft: fixed, or what the measured times and acceptances say yields the most tokens per second."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxytune.hf.decoding.acceptance import Acceptance
from proxytune.hf.decoding.costs import Costs
from proxytune.options import Speculation

MAX_WIDTH = 12  # tokens the base reads in one pass, at most, unless more were asked for
_MAX_BLIND_WIDTH = 8  # the same where a draft cannot be ended as it comes
_WARM = 3  # plain cycles before anything is tried
_MARGIN = 1.03  # what drafting must promise before it is begun
_WIDE, _NARROW = 4, 2  # widths that are tried: kernels for two positions may cost twice as much, for four little more
_FIRST_PAUSE, _LAST_PAUSE = 32, 1024  # plain cycles between two trials, doubled each time that one fails
_MOST_REPEATS = 2  # of a trial whose kernels were still being set up
_REFRESH = 64  # drafting cycles between two plain ones, whose time grows with the answer


@dataclass(frozen=True)
class Plan:
    """What a cycle may do: read up to `width` tokens; just as many if it is fixed."""

    width: int
    is_fixed: bool = True


@dataclass
class _Size:
    """What is known of batches of one size: their costs, and when to look again."""

    costs: Costs = field(default_factory=Costs)
    pause: int = _FIRST_PAUSE
    next_trial: int = _WARM
    next_refresh: int = 0
    tried: int = 0  # the width of a trial whose time is not known yet
    num_repeats: int = 0


class Controller:
    """Chooses the width of each cycle: 1 is plain decoding, k + 1 drafts k tokens.

    A cycle of width w takes c(w) seconds and yields 1 + Σ P(the first i drafts are kept) tokens. Both are measured
    while decoding: c per power of two of the batch's rows, P by how sure the drafter is of each draft. Drafts are added
    as long as what they add in tokens is worth their seconds at the throughput that is being reached. Where a cycle is
    recorded whole, and so its width chosen beforehand, P is taken by a draft's place, and the width with the most
    tokens per second runs. Where drafting does not pay, a short trial follows now and then, ever more rarely.
    """

    def __init__(self, speculation: Speculation) -> None:
        """`speculation`: "off", "auto", or k."""
        self._fixed = None if speculation == "auto" else 1 if speculation == "off" else int(speculation) + 1
        self._sizes: dict[int, _Size] = defaultdict(_Size)
        self._acceptance = Acceptance()
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
        """Return the width of the next cycle of a batch of so many rows, where it must be known beforehand."""
        if self._fixed is not None:
            return self._fixed
        with self._lock:
            return self._best(self._sizes[num_rows.bit_length()])

    def plan(self, num_rows: int, *, is_free: bool) -> Plan:
        """Return what the next cycle may do, where `goes_on` can end its draft.

        Args:
            num_rows: Rows that are not finished.
            is_free: Whether a first draft costs nothing; else it must promise something before it is known.
        """
        if self._fixed is not None:
            return Plan(self._fixed)
        with self._lock:
            size = self._sizes[num_rows.bit_length()]
            if not self._is_ready(size):
                return Plan(self._trial(size))
            if size.costs.num_cycles >= size.next_refresh:
                size.next_refresh = size.costs.num_cycles + _REFRESH
                return Plan(1)
            if size.tried or size.costs.num_cycles >= size.next_trial:
                return Plan(self._trial(size))
            if is_free or self._pays(size, num_rows, 1, num_rows * self._acceptance.typical_rate()):
                return Plan(MAX_WIDTH, is_fixed=False)
            return Plan(1)

    def goes_on(self, num_rows: int, width: int, survival: Sequence[float]) -> bool:
        """Return whether a cycle that reads `width` tokens by now should read one more.

        Args:
            num_rows: Rows that are not finished.
            width: Tokens so far.
            survival: For each row with room for the draft in question, the probability that it and all before it are
                right.
        """
        with self._lock:
            size = self._sizes[num_rows.bit_length()]
            if not self._pays(size, num_rows, width, sum(survival)):
                return False
            size.pause = _FIRST_PAUSE
            size.next_trial = size.costs.num_cycles + size.pause
            return True

    def _pays(self, size: _Size, num_rows: int, width: int, gain: float) -> bool:
        """Return whether a draft more, which adds `gain` tokens, is worth its time, alone or with those behind it."""
        level, slope = size.costs.line()
        before = size.costs.of(1) if width == 1 else level + slope * width
        worth = size.costs.tokens_per_second(num_rows) * (_MARGIN if width == 1 else 1.0)
        added, rate = 0.0, self._acceptance.typical_rate()
        for wider in range(width + 1, MAX_WIDTH + 1):
            added += gain
            gain *= rate
            if added >= worth * (level + slope * wider - before):
                return True
        return False

    @property
    def trust(self) -> float:
        """What `rate` is worth by the latest cycles, 1 at most."""
        with self._lock:
            return self._acceptance.trust

    def rate(self, probability: float) -> float:
        """Return how often a draft is right to which the drafter gives this probability."""
        with self._lock:
            return self._acceptance.rate(probability)

    def observe(
        self,
        width: int,
        num_rows: int,
        seconds: float,
        agreed: Sequence[int],
        *,
        sureness: Sequence[Sequence[float]] | None = None,
        is_cold: bool = False,
    ) -> None:
        """Learn from a cycle.

        Args:
            width: Of the cycle.
            num_rows: Of the batch.
            seconds: That it took.
            agreed: How many of `width − 1` drafts each row kept.
            sureness: What the drafter gave each draft, per row.
            is_cold: Whether such a cycle will take less when it comes again. A trial of that kind is repeated.
        """
        if self._fixed is not None:
            return
        with self._lock:
            size = self._sizes[num_rows.bit_length()]
            size.costs.add(width, seconds, sum(agreed) + len(agreed), is_cold=is_cold)
            if not is_cold or width != size.tried:
                size.tried = size.num_repeats = 0
            self._acceptance.learn(width, agreed, sureness)

    def expected_tokens(self, width: int) -> float:
        """Return E(width), the tokens of a row that a cycle yields, by the places of drafts."""
        return self._acceptance.expected_tokens(width)

    @staticmethod
    def _is_ready(size: _Size) -> bool:
        """Return whether enough is known to say what drafting costs."""
        return size.costs.num_cycles >= _WARM and size.costs.knows(1) and size.costs.num_widths > 1

    def _best(self, size: _Size) -> int:
        costs = size.costs
        if not self._is_ready(size):
            return self._trial(size)
        rates = {width: self.expected_tokens(width) / costs.of(width) for width in range(1, _MAX_BLIND_WIDTH + 1)}
        best = max(rates, key=rates.__getitem__)
        if best == 1 or rates[best] < _MARGIN * rates[1]:
            return self._trial(size)
        size.pause = _FIRST_PAUSE
        size.next_trial = costs.num_cycles + size.pause
        if costs.num_cycles >= size.next_refresh:
            size.next_refresh = costs.num_cycles + _REFRESH
            return 1
        return best

    @staticmethod
    def _trial(size: _Size) -> int:
        """Return a width to try where it is time to see whether drafting pays by now, else 1."""
        costs = size.costs
        if size.tried and size.num_repeats < _MOST_REPEATS:
            size.num_repeats += 1
            return size.tried
        if costs.num_cycles < max(_WARM, size.next_trial) or not costs.knows(1):
            return 1
        is_first = costs.num_widths == 1
        size.next_trial = costs.num_cycles + size.pause
        size.pause = size.pause if is_first else min(2 * size.pause, _LAST_PAUSE)
        size.tried = _WIDE if is_first else _NARROW
        return size.tried
