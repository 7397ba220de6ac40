"""The loop: cycles of drafting, one reading by every role, and as many tokens per row as the draft got right.

A cycle of width w reads the row's last token and w − 1 drafts, and yields 1 to w tokens; plain decoding is w = 1, the
same code. Each token is the one that the combined distribution chooses at its place, by argmax or by the place's race,
so drafts decide how fast tokens come and never which: greedy or seeded, the answer is that of plain decoding (up to
the rounding of a pass over several tokens, as of any batch).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from proxytune.completion import DecodingStats, TokenLogprob
from proxytune.errors import RemoteError
from proxytune.hf.decoding.answers import Answers, read_logprobs
from proxytune.hf.decoding.controller import Controller, Plan
from proxytune.hf.decoding.cycle import Cycle
from proxytune.hf.decoding.graph import Step
from proxytune.hf.decoding.prospect import Prospect
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.decoding.stats import Tally

_ROOM = 64  # columns that are ready for an answer when it begins
_COMPACT_SHARE, _COMPACT_CYCLES = 8, 8  # finished rows leave when they are an eighth, or after so many cycles
PLAIN_BURST, DRAFT_BURST = 8, 2  # cycles of a graph between two looks at what it has done

Logprobs = tuple[list[Any], list[Any], list[Any]]


@dataclass(frozen=True)
class Decoded:
    """What a batch gave: per request its tokens and log-probabilities, when the first token came, and the figures.

    With a base behind an API also which requests ended early and why, and the seen share of its probability per token.
    """

    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprob]] | None
    first_token_at: float | None
    stats: DecodingStats | None = None
    errors: Mapping[int, RemoteError] = field(default_factory=dict)
    masses: list[list[float]] | None = None


@dataclass
class Decoding:
    """One batch on its way.

    Attributes:
        cycle: What happens on the device.
        controller: How far is drafted.
        answers: What the rows have.
        limits: Most tokens per request.
        num_logprobs: How many of the likeliest tokens are recorded; None for no log-probabilities at all.
        is_static: Whether cycles run over pinned slots, as one graph where the device is a CUDA one, several between
            two looks of the host. Not with a draft model or log-probabilities.
        on_tokens: Told what each row of a request got, as it comes.
        is_cancelled: Asked before each cycle.
        device: Of the combined logits.
    """

    cycle: Cycle
    controller: Controller
    answers: Answers
    limits: Sequence[int]
    device: torch.device
    num_logprobs: int | None = None
    is_static: bool = False
    on_tokens: Callable[[Sequence[int]], None] | None = None
    is_cancelled: Callable[[], bool] = bool
    tally: Tally = field(default_factory=Tally)
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self._is_done = [False] * len(self.limits)
        self._is_prompt = True
        self._num_read = [0] * len(self.limits)  # tokens of each answer that a draft model has read
        self._cycles_since_compaction = 0
        self._room = 0  # tokens of an answer that pinned slots hold
        self._steps: dict[int, Step] = {}

    @torch.no_grad()
    def run(self) -> None:
        """Decode until every row has ended."""
        state = self.cycle.state
        self.cycle.sampler.prepare(self.answers.counts, 1)
        logits = self.cycle.ensemble.read_prompts(_ROOM, max(self.limits))
        outcome = state.take(self.cycle.sampler, logits, state.pending[:, :0])
        self._store(outcome.tolist(), 1, self._logprobs(logits, outcome))
        self._is_prompt = False
        while not all(self._is_done) and not self.is_cancelled():
            self._compact()
            if self.is_static:
                self._burst()
            else:
                self._single()

    def _rooms(self) -> list[int]:
        """Return how many tokens each row of the batch can still take: none one that has ended."""
        rows = zip(self.answers.alive, self.answers.counts, self._is_done, strict=True)
        return [0 if is_done else self.limits[request] - count for request, count, is_done in rows]

    def _plan(self, rooms: Sequence[int]) -> Plan:
        """Return what the next cycle may do; it reads no more than the row with the most room can take."""
        if not self.cycle.ensemble.can_draft:
            return Plan(1)
        num_rows = sum(room > 0 for room in rooms)
        plan = self.controller.plan(num_rows, is_free=self.cycle.ensemble.first_draft_is_free)
        return replace(plan, width=min(plan.width, max(rooms)))

    def _single(self) -> None:
        """Run one cycle."""
        started = time.perf_counter()
        rooms, counts = self._rooms(), self.answers.counts
        plan = self._plan(rooms)
        self.cycle.sampler.prepare(counts, plan.width)
        has_draft_model = plan.width > 1 and not self.cycle.ensemble.drafts_itself
        first = self._caught_up() if has_draft_model else None
        prospect = None
        if self.controller.is_automatic:
            prospect = Prospect(self.controller, rooms, is_open=not plan.is_fixed)
        outcome, logits = self.cycle.run(plan.width, [max(0, count - 1) for count in counts], first, rooms, prospect)
        width = logits.shape[1]
        # Where drafts are not judged, the one point of a cycle at which the host waits.
        agreed = self._store(outcome.tolist(), width, self._logprobs(logits, outcome))
        if has_draft_model:
            # It has read all but its last draft; what was not kept of that is not read.
            self._num_read = [
                max(read, min(before + width - 2, after - 1))
                for read, before, after in zip(self._num_read, counts, self.answers.counts, strict=True)
            ]
        self._learn(width, time.perf_counter() - started, agreed, prospect)

    def _learn(self, width: int, seconds: float, agreed: Mapping[int, int], prospect: Prospect | None = None) -> None:
        """Tell the controller what a cycle took, and how many drafts each row kept."""
        if agreed:
            sureness = None if prospect is None else [prospect.of_row(row) for row in agreed]
            is_cold = self.cycle.ensemble.take_cold()
            self.controller.observe(
                width, len(agreed), seconds, list(agreed.values()), sureness=sureness, is_cold=is_cold
            )

    def _burst(self) -> None:
        """Run several cycles, then look once."""
        started = time.perf_counter()
        width = self.controller.width(len(self._is_done)) if self.cycle.ensemble.can_draft else 1
        num_cycles = PLAIN_BURST if width == 1 else DRAFT_BURST
        if self.on_tokens is not None:
            num_cycles = 1
        counts = self.answers.counts
        self._pin(max(counts) + num_cycles * width)
        self.cycle.sampler.prepare(counts, num_cycles * width)
        step = self._steps.setdefault(width, Step(self.cycle, width, self.device))
        outcomes = torch.stack([step.run() for _ in range(num_cycles)]).tolist()
        agreed = [self._store(outcome, width, None) for outcome in outcomes if not all(self._is_done)]
        seconds = (time.perf_counter() - started) / len(agreed)
        for found in agreed:
            self._learn(width, seconds, found)

    def _pin(self, length: int) -> None:
        """Have slots for answers of `length` tokens, at addresses that stay until there must be more."""
        if length > self._room:
            self._room = max(length, 2 * self._room, _ROOM)
            self.cycle.ensemble.pin(self._room)
            self._steps.clear()

    def _caught_up(self) -> Tensor:
        """Let a draft model read what it has not read of every answer; return its logits `[B, 1, V]` behind that.

        Rows lack different numbers of tokens: short ones are padded on the right, in slots that are yet to be written.
        """
        missing = [
            self.answers.token_ids[request][read:]
            for request, read in zip(self.answers.alive, self._num_read, strict=True)
        ]
        width = max(map(len, missing))
        tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in missing], device=self.device)
        reading = Reading(torch.tensor(self._num_read, device=self.device), self._num_read)
        logits = self.cycle.ensemble.draft(tokens, reading)
        last = torch.tensor([len(ids) - 1 for ids in missing], device=self.device)
        return logits[torch.arange(len(missing), device=self.device), last][:, None]

    def _store(self, outcome: list[list[int]], width: int, logprobs: Logprobs | None) -> dict[int, int]:
        """Add what a cycle gave to the answers; return how many drafts each row kept that was unfinished before."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        failures, masses = self.cycle.ensemble.failures, self.cycle.ensemble.masses
        agreements: dict[int, int] = {}
        emitted = []
        for row, line in enumerate(outcome):
            if self._is_done[row]:
                continue
            if row in failures:
                self._fail(row, failures[row])
                continue
            agreed, count, is_done = line[width:]
            tokens = line[:count]
            entries = read_logprobs(logprobs, row, tokens) if logprobs else []
            if self.answers.add(row, tokens, entries, masses[row][:count] if masses else ()):
                self.cycle.state.end(row)
                is_done = 1
            self._is_done[row] = bool(is_done)
            agreements[row] = agreed
            emitted.append(count)
            if self.on_tokens is not None:
                self.on_tokens(tokens)
        if self._is_prompt:
            self.tally.count_first(sum(emitted))
        else:
            self.tally.count(width, list(agreements.values()), emitted)
        return agreements

    def _fail(self, row: int, error: RemoteError) -> None:
        """End a row whose request failed with what it has; the others go on."""
        self.answers.fail(row, error)
        self.cycle.state.end(row)
        self._is_done[row] = True

    def _logprobs(self, logits: Tensor, outcome: Tensor) -> Logprobs | None:
        """Return, as lists over rows, the log-probabilities of the tokens, and values and ids of the likeliest."""
        if self.num_logprobs is None:
            return None
        table = logits.log_softmax(-1)
        chosen = table.gather(-1, outcome[:, : logits.shape[1], None])[..., 0]
        values, ids = table.topk(min(self.num_logprobs, table.shape[-1]), dim=-1)
        return chosen.tolist(), values.tolist(), ids.tolist()

    def _compact(self) -> None:
        """Let finished rows go, when they are many or have waited long: moving the others costs about one cycle."""
        self._cycles_since_compaction += 1
        num_done = sum(self._is_done)
        if num_done == 0 or (
            num_done * _COMPACT_SHARE < len(self._is_done) and self._cycles_since_compaction < _COMPACT_CYCLES
        ):
            return
        self._cycles_since_compaction = 0
        rows = [row for row, is_done in enumerate(self._is_done) if not is_done]
        for part in (self.cycle.ensemble, self.cycle.state, self.answers):
            part.keep(rows)
        self.cycle.sampler.select_rows(rows)
        self._num_read = [self._num_read[row] for row in rows]
        self._is_done = [False] * len(rows)
        self._steps.clear()
