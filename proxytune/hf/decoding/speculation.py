"""How far to draft: a fixed number of tokens, or as many as measured times and acceptances say pay.

A step that drafts k tokens takes level + slope · k seconds and yields one token and those drafts that are right. Both
are measured while decoding: seconds per power of two of the batch's rows, and how often drafts are right by the
drafter's confidence in them. A draft is added where the tokens it promises are worth its seconds at the throughput that
is being reached. Where drafting does not pay it is tried again ever more rarely.
"""

import math
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from proxytune.options import Speculation

MAX_DRAFT_TOKENS = 11  # in one step, unless more were asked for
_NUM_WARMUP = 3  # plain steps before drafting is tried
_NUM_TRIAL = 3  # drafts of a trial
_FIRST_PAUSE, _LAST_PAUSE = 64, 1024  # plain steps between trials, doubled each time that one does not pay
_REFRESH = 64  # drafting steps between two plain ones, whose time grows with the answer
_MARGIN = 1.05  # what drafting must promise before it is begun
_MAX_LOSS = 1.0  # plain steps that drafting may lose before it ends until the next trial, whatever it promises
_NUM_LATEST = 7  # steps of a kind whose seconds are remembered
_DECAY = 0.97  # per step, of the throughput
_PRIOR, _PRIOR_WEIGHT = 0.7, 2.0  # acceptance before anything is known
_MEMORY = 64  # drafts of a confidence that count
_NUM_BINS = 10


@dataclass
class Drafting:
    """One step's drafts.

    Attributes:
        max_tokens: Most drafts of the step.
        is_open: Whether `should_continue` is asked before each.
        remaining_tokens: Per row of the batch; 0 for finished rows.
        draft_probs: Per draft that was judged, per row: the drafter's probability.
        survival: Per row, the probability that all of them are right.
    """

    max_tokens: int
    is_open: bool = False
    remaining_tokens: Sequence[int] = ()
    draft_probs: list[list[float]] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Number of unfinished rows."""
        return sum(count > 0 for count in self.remaining_tokens)


class DraftConfidence:
    """How often drafts are right: by the drafter's probability, in bins that get finer towards 1, and over all."""

    def __init__(self) -> None:
        self._num_asked = [0.0] * _NUM_BINS
        self._num_right = [0.0] * _NUM_BINS
        self._asked, self._right = _PRIOR_WEIGHT, _PRIOR * _PRIOR_WEIGHT

    @property
    def typical_rate(self) -> float:
        """Share of recent drafts that were right, all before them being so."""
        return self._right / self._asked

    def rate(self, probability: float) -> float:
        """Return how often a draft of this probability is right, all before it being so."""
        index = confidence_bin(probability)
        return (self._num_right[index] + _PRIOR * _PRIOR_WEIGHT) / (self._num_asked[index] + _PRIOR_WEIGHT)

    def learn(self, num_drafts: int, agreed: Sequence[int], draft_probs: Sequence[Sequence[float]]) -> None:
        """Count a step: how many of its drafts each unfinished row kept, and the probabilities if they were judged."""
        self._asked *= _DECAY
        self._right *= _DECAY
        for row, count in enumerate(agreed):
            self._asked += min(count + 1, num_drafts) / len(agreed)
            self._right += count / len(agreed)
            for position, probs in enumerate(draft_probs[: count + 1]):
                index = confidence_bin(probs[row])
                self._num_asked[index] += 1 - self._num_asked[index] / _MEMORY
                self._num_right[index] += (position < count) - self._num_right[index] / _MEMORY


def confidence_bin(probability: float) -> int:
    """Return the bin of a probability.

    >>> [confidence_bin(probability) for probability in (0.0, 0.3, 0.5, 0.75, 0.9, 0.99, 1.0)]
    [0, 0, 1, 3, 4, 9, 9]
    """
    doubt = max(1.0 - probability, 2.0**-_NUM_BINS)
    return min(_NUM_BINS - 1, int(-1.5 * math.log2(doubt)))


@dataclass
class StepCosts:
    """Measured seconds of steps of one batch size by their number of drafts, and when to try again."""

    num_steps: int = 0
    next_trial: int = _NUM_WARMUP
    pause: int = _FIRST_PAUSE
    next_refresh: int = 0
    saved: float = 0.0  # seconds that recent drafting has saved against plain decoding
    _seconds: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_NUM_LATEST)))
    _tokens: float = 0.0
    _time: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether plain steps and drafting ones have been measured."""
        return 0 in self._seconds and len(self._seconds) > 1

    @property
    def plain(self) -> float:
        """Seconds of a plain step: the least of the latest, because noise only adds."""
        return min(self._seconds[0])

    def add(self, num_drafts: int, seconds: float, num_tokens: int, num_rows: int) -> None:
        """Note a step that gave so many tokens over all of `num_rows` rows."""
        self.num_steps += 1
        if self.num_steps == 1:  # it sets buffers up
            return
        self._seconds[num_drafts].append(seconds)
        self._tokens = self._tokens * _DECAY + num_tokens
        self._time = self._time * _DECAY + min(self._seconds[num_drafts])
        if num_drafts and 0 in self._seconds:
            self.saved = self.saved * _DECAY + num_tokens / num_rows * self.plain - seconds

    def line(self) -> tuple[float, float]:
        """Return level and slope of drafting steps, the least squares of level + slope · k."""
        points = [(count, min(seconds), len(seconds)) for count, seconds in self._seconds.items() if count > 0]
        if len(points) == 1:
            points.append((0, self.plain, 1))
        weight = sum(num for _, _, num in points)
        center = sum(count * num for count, _, num in points) / weight
        mean = sum(seconds * num for _, seconds, num in points) / weight
        spread = sum(num * (count - center) ** 2 for count, _, num in points)
        slope = max(0.0, sum(num * (count - center) * (seconds - mean) for count, seconds, num in points) / spread)
        return mean - slope * center, slope

    def tokens_per_second(self, num_rows: int) -> float:
        """Return the throughput of a batch as it is decoded, plain decoding's at least."""
        return max(num_rows / self.plain, self._tokens / self._time if self._time else 0.0)


class SpeculationPolicy:
    """Decides the drafts of each step; "auto" learns over the batches of a generator, whichever thread decodes."""

    def __init__(self, speculation: Speculation) -> None:
        """`speculation`: "off", "auto", or k."""
        self._fixed = {"off": 0, "auto": None}.get(str(speculation), speculation)
        self._costs: dict[int, StepCosts] = defaultdict(StepCosts)
        self._confidence = DraftConfidence()
        self._lock = threading.Lock()

    @property
    def max_draft_tokens(self) -> int:
        """Most drafts of any step."""
        return MAX_DRAFT_TOKENS if self._fixed is None else int(self._fixed)

    @property
    def is_automatic(self) -> bool:
        """Whether drafts follow measurements."""
        return self._fixed is None

    def begin(self, remaining_tokens: Sequence[int], roles: Any) -> Drafting:
        """Return what the next step may draft: no more than the row with the most remaining tokens can take."""
        limit = max(remaining_tokens) - 1
        if not roles.can_draft or limit < 1:
            return Drafting(0, remaining_tokens=remaining_tokens)
        if self._fixed is not None:
            return Drafting(min(int(self._fixed), limit), remaining_tokens=remaining_tokens)
        with self._lock:
            drafting = self._plan(remaining_tokens)
        drafting.max_tokens = min(drafting.max_tokens, limit)
        return drafting

    def should_continue(self, drafting: Drafting, logits: Tensor, token: Tensor) -> bool:
        """Return whether `token` `[B, 1]`, chosen from the drafter's `logits` `[B, 1, V]`, is worth a draft."""
        probs: list[float] = logits[:, 0].float().softmax(-1).gather(-1, token)[:, 0].nan_to_num(0.0).tolist()
        with self._lock:
            before = drafting.survival or [1.0] * len(probs)
            survival = [value * self._confidence.rate(prob) for value, prob in zip(before, probs, strict=True)]
            num_drafts = len(drafting.draft_probs)
            useful = [
                value
                for value, remaining in zip(survival, drafting.remaining_tokens, strict=True)
                if remaining > num_drafts + 1
            ]
            if not self._pays(self._costs_of(drafting.num_rows), drafting.num_rows, num_drafts, sum(useful)):
                return False
        drafting.survival = survival
        drafting.draft_probs.append(probs)
        return True

    def observe(
        self,
        drafting: Drafting,
        num_drafts: int,
        agreed: Sequence[int],
        seconds: float,
        *,
        is_warmup: bool = False,
    ) -> None:
        """Learn from a step: its drafts, how many of them each row kept that was unfinished, and its seconds.

        A step that set up what later ones use, as a graph, teaches nothing about time.
        """
        if self._fixed is not None or not agreed:
            return
        with self._lock:
            costs = self._costs_of(drafting.num_rows)
            if not is_warmup:
                costs.add(num_drafts, seconds, sum(agreed) + len(agreed), len(agreed))
            if num_drafts:
                unfinished = [row for row, count in enumerate(drafting.remaining_tokens) if count > 0]
                probs = [[row_probs[row] for row in unfinished] for row_probs in drafting.draft_probs]
                if len(unfinished) == len(agreed):
                    self._confidence.learn(num_drafts, agreed, probs)

    def _costs_of(self, num_rows: int) -> StepCosts:
        return self._costs[num_rows.bit_length()]

    def _plan(self, remaining_tokens: Sequence[int]) -> Drafting:
        drafting = Drafting(0, remaining_tokens=remaining_tokens)
        num_rows = drafting.num_rows
        costs = self._costs_of(num_rows)
        if costs.is_known:
            if costs.num_steps >= costs.next_refresh:
                costs.next_refresh = costs.num_steps + _REFRESH
                return drafting
            is_losing = costs.saved < -_MAX_LOSS * costs.plain
            if not is_losing and self._pays(costs, num_rows, 0, num_rows * self._confidence.typical_rate):
                if costs.saved > 0:
                    costs.pause = _FIRST_PAUSE
                costs.next_trial = costs.num_steps + costs.pause
                drafting.max_tokens, drafting.is_open = MAX_DRAFT_TOKENS, True
                return drafting
        if costs.num_steps >= costs.next_trial:
            costs.saved = 0.0
            costs.next_trial = costs.num_steps + costs.pause
            costs.pause = min(2 * costs.pause, _LAST_PAUSE)
            drafting.max_tokens = _NUM_TRIAL
        return drafting

    def _pays(self, costs: StepCosts, num_rows: int, num_drafts: int, gain: float) -> bool:
        """Return whether a draft more, which adds `gain` tokens, is worth its time, alone or with those after it."""
        level, slope = costs.line()
        before = costs.plain if num_drafts == 0 else level + slope * num_drafts
        worth = costs.tokens_per_second(num_rows) * (_MARGIN if num_drafts == 0 else 1.0)
        added, rate = 0.0, self._confidence.typical_rate
        for count in range(num_drafts + 1, MAX_DRAFT_TOKENS + 1):
            added += gain
            gain *= rate
            if added >= worth * (level + slope * count - before):
                return True
        return False
