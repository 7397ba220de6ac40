"""What cycles of a batch of one size cost, by width: measured while decoding."""

from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass, field

_LATEST = 7  # cycles of a width that are remembered
_DECAY = 0.97  # per cycle, of what is known about the throughput


@dataclass
class Costs:
    """Seconds of the latest cycles by width, and the tokens that they gave.

    Attributes:
        num_cycles: How many were observed.
    """

    num_cycles: int = 0
    _seconds: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_LATEST)))
    _tokens: float = 0.0
    _time: float = 0.0

    def add(self, width: int, seconds: float, num_tokens: int, *, is_cold: bool = False) -> None:
        """Note a cycle that gave so many tokens over all rows; the time of a cold one says nothing about the next."""
        self.num_cycles += 1
        # The first cycles at any width set buffers up.
        if self.num_cycles > 2 and not is_cold:
            self._seconds[width].append(seconds)
        if self._seconds:
            self._tokens = self._tokens * _DECAY + num_tokens
            # What such a cycle takes when nothing disturbs it.
            self._time = self._time * _DECAY + self.of(width)

    def knows(self, width: int) -> bool:
        """Return whether a cycle of this width was measured."""
        return width in self._seconds

    @property
    def num_widths(self) -> int:
        """How many widths were measured."""
        return len(self._seconds)

    def of(self, width: int) -> float:
        """Return the least of the latest seconds; from a line through the widths next to it where none was measured.

        The least, because noise only ever adds.
        """
        if width in self._seconds:
            return min(self._seconds[width])
        known = sorted(self._seconds)
        if len(known) == 1:
            return self.of(known[0])
        place = min(max(1, bisect(known, width)), len(known) - 1)
        first, second = known[place - 1], known[place]
        slope = max(0.0, (self.of(second) - self.of(first)) / (second - first))
        return max(self.of(second) + slope * (width - second), 0.0)

    def line(self) -> tuple[float, float]:
        """Return cost and slope of drafting widths, a and b in a + b · width: the line of least squares.

        A single width that drafts is joined with plain decoding, which says too much of the slope rather than too
        little: reading a second position costs more than any after it.
        """
        points = [(width, min(found), len(found)) for width, found in self._seconds.items() if width > 1]
        if len(points) < 2:
            points += [(1, self.of(1), 1)]
        weight = sum(count for _, _, count in points)
        center = sum(width * count for width, _, count in points) / weight
        level = sum(seconds * count for _, seconds, count in points) / weight
        spread = sum(count * (width - center) ** 2 for width, _, count in points)
        slope = sum(count * (width - center) * (seconds - level) for width, seconds, count in points) / spread
        return level - max(slope, 0.0) * center, max(slope, 0.0)

    def tokens_per_second(self, num_rows: int) -> float:
        """Return the throughput of a batch as it is decoded, plain decoding's at least."""
        return max(num_rows / self.of(1), self._tokens / self._time if self._time else 0.0)
