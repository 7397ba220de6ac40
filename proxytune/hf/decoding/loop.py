"""The decode loop: draft, forward, combine, accept.

A step runs each row's last token and k drafts through every role and yields 1 to k + 1 tokens; plain decoding is
k = 0, the same code. Each token is the one that the combined distribution chooses at its position, by argmax or by the
position's noise, so drafts decide how fast tokens come and never which: greedy or seeded, the answer is that of plain
decoding (up to the rounding of a forward over several tokens, as of any batch).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from proxytune.completion import Request
from proxytune.errors import RemoteError
from proxytune.hf.decoding.batch_state import BatchState, Logprobs, is_broken
from proxytune.hf.decoding.speculation import Drafting, SpeculationPolicy
from proxytune.hf.decoding.stats import DecodeCounters
from proxytune.sampling import Sampler

# Finished rows leave when they are an eighth, or after so many steps: moving the others costs about one step.
_COMPACT_SHARE, _COMPACT_STEPS = 8, 8


class Roles(Protocol):
    """Interface of a batch's roles, as the loop uses them; `RoleGroup` is one, and a fake fits a page."""

    expert_drafts: bool
    peaks: Tensor

    @property
    def can_draft(self) -> bool:
        """True if there is a drafter."""

    @property
    def failures(self) -> Mapping[int, RemoteError]:
        """Rows whose part of the last forward failed, and why."""

    @property
    def masses(self) -> Sequence[Sequence[float]] | None:
        """Seen share of a remote base's probability in the last forward; None for a local base."""

    def prefill(self) -> Tensor:
        """Run the prompts and return the combined logits `[B, 1, V]`."""

    def submit(self, token_ids: Tensor, offsets: Sequence[int], num_needed: Sequence[int]) -> None:
        """Announce the tokens of the next forward."""

    def draft_logits(self, token_ids: Tensor, offsets: Sequence[int]) -> Tensor:
        """Run the drafter over `[B, T]` tokens and return its logits `[B, T, V]`."""

    def forward(self, token_ids: Tensor, offsets: Sequence[int], expert_logits: Tensor | None = None) -> Tensor:
        """Run the roles over `[B, T]` tokens and return the combined logits `[B, T, V]`."""

    def require_finite(self, row: int, position: int, request_index: int) -> None:
        """Raise where a role's logits are NaN or infinite."""

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows."""

    def pop_warmup(self) -> bool:
        """Return whether a forward since the last call also set up what later ones use."""


@dataclass
class DecodeLoop:
    """One batch on its way.

    Attributes:
        roles: Their forwards and the rule.
        sampler: Chooses tokens, for drafts and for the combined distribution alike.
        state: The rows.
        policy: Policy for the number of drafts.
        requests: Of the batch.
        device: Of the combined logits.
        num_logprobs: Number of the likeliest tokens recorded; None for no log-probabilities at all.
        on_tokens: Called with the new tokens of a row as they come.
        is_cancelled: Called before each step.
    """

    roles: Roles
    sampler: Sampler
    state: BatchState
    policy: SpeculationPolicy
    requests: Sequence[Request]
    device: torch.device
    num_logprobs: int | None = None
    on_tokens: Callable[[Sequence[int]], None] | None = None
    is_cancelled: Callable[[], bool] = bool
    counters: DecodeCounters = field(default_factory=DecodeCounters)
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self._num_run = [0] * len(self.requests)  # per row, tokens of its answer that a draft model has run
        self._steps_since_compaction = 0

    @torch.inference_mode()
    def run(self) -> None:
        """Decode until every row has finished."""
        self.sampler.prepare(self.state.counts, 1)
        logits = self.roles.prefill()
        self._accept(logits, torch.empty(len(logits), 0, dtype=torch.long, device=self.device))
        self.first_token_at = time.perf_counter()
        while not all(self.state.is_finished) and not self.is_cancelled():
            self._compact()
            self._step()

    def _step(self) -> None:
        """Run one step: draft, forward, combine, accept."""
        started = time.perf_counter()
        offsets, remaining = self.state.offsets, self.state.remaining_tokens
        drafting = self.policy.begin(remaining, self.roles)
        self.sampler.prepare(self.state.counts, drafting.max_tokens + 1)
        last_tokens = torch.tensor(self.state.last_tokens, device=self.device)[:, None]
        drafts, expert_logits = self._draft(last_tokens, offsets, drafting)
        tokens = torch.cat([last_tokens, drafts], dim=1) if drafts.shape[1] else last_tokens
        self.roles.submit(tokens, offsets, remaining)
        logits = self.roles.forward(tokens, offsets, expert_logits)
        num_agreed = self._accept(logits, drafts)
        seconds = time.perf_counter() - started
        self.policy.observe(drafting, drafts.shape[1], num_agreed, seconds, is_warmup=self.roles.pop_warmup())

    def _draft(self, last_tokens: Tensor, offsets: Sequence[int], drafting: Drafting) -> tuple[Tensor, Tensor | None]:
        """Return the drafts `[B, k]`, and the expert's logits `[B, k + 1, V]` where it made them.

        An expert also runs its last draft, as its logits there enter the rule. A draft model does not.
        """
        drafts = last_tokens[:, :0]
        if drafting.max_tokens == 0:
            return drafts, None
        expert_drafts = self.roles.expert_drafts
        logits = [self.roles.draft_logits(last_tokens, offsets) if expert_drafts else self._catch_up()]
        positions = self._positions(1)
        while drafts.shape[1] < drafting.max_tokens:
            token = self.sampler.sample(logits[-1], positions, drafts)
            if drafting.is_open and not self.policy.should_continue(drafting, logits[-1], token):
                break
            drafts = torch.cat([drafts, token], dim=1)
            positions = positions + 1
            if expert_drafts or drafts.shape[1] < drafting.max_tokens:
                logits.append(self.roles.draft_logits(token, [offset + drafts.shape[1] for offset in offsets]))
        return drafts, torch.cat(logits, dim=1) if expert_drafts else None

    def _catch_up(self) -> Tensor:
        """Let a draft model run what it has not run of every answer; return its logits `[B, 1, V]` after that.

        Rows lack different numbers of tokens: short ones are padded on the right, in slots yet to be written.
        """
        answers = [self.state.token_ids[request] for request in self.state.alive]
        missing = [answer[done:] for answer, done in zip(answers, self._num_run, strict=True)]
        width = max(map(len, missing))
        tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in missing], device=self.device)
        logits = self.roles.draft_logits(tokens, self._num_run)
        last = torch.tensor([len(ids) - 1 for ids in missing], device=self.device)
        self._num_run = [len(answer) for answer in answers]
        return logits[torch.arange(len(missing), device=self.device), last][:, None]

    def _accept(self, logits: Tensor, drafts: Tensor) -> list[int]:
        """Choose from combined logits `[B, k + 1, V]`, add what counts to the rows; return their agreeing drafts.

        The one point of a step at which the host waits for the device, unless drafts are judged as they come.
        """
        width = logits.shape[1]
        chosen = self.sampler.sample(logits, self._positions(width), drafts)
        tokens, drafted, peaks = chosen.tolist(), drafts.tolist(), self.roles.peaks.tolist()
        logprobs = self._logprobs(logits, chosen)
        failures, masses = self.roles.failures, self.roles.masses
        agreed, emitted = [], [0] * len(tokens)
        for row in [row for row, is_finished in enumerate(self.state.is_finished) if not is_finished]:
            if row in failures:
                self.state.fail(row, failures[row])
                continue
            mass = masses[row] if masses else ()
            num_agreed, num_new = self.state.accept(row, tokens[row], drafted[row], logprobs, mass)
            for position in range(num_new):
                if is_broken(peaks[row][position]):
                    self.roles.require_finite(row, position, self.requests[self.state.alive[row]].index)
            agreed.append(num_agreed)
            emitted[row] = num_new
            if self.on_tokens is not None:
                self.on_tokens(tokens[row][:num_new])
        self._note(chosen, emitted)
        self.counters.count(width - 1, agreed, emitted)
        return agreed

    def _note(self, chosen: Tensor, num_new: Sequence[int]) -> None:
        """Tell the sampler which of the chosen tokens `[B, T]` count."""
        counts = torch.tensor(num_new, device=self.device)[:, None]
        self.sampler.update_seen(chosen, torch.arange(chosen.shape[1], device=self.device) < counts)

    def _positions(self, width: int) -> Tensor:
        """Return the next `width` positions of every answer, `[B, width]`."""
        counts = torch.tensor(self.state.counts, device=self.device)[:, None]
        return counts + torch.arange(width, device=self.device)

    def _logprobs(self, logits: Tensor, chosen: Tensor) -> Logprobs | None:
        """Return, as lists over rows, the log-probabilities of the tokens, and values and ids of the likeliest."""
        if self.num_logprobs is None:
            return None
        table = logits.log_softmax(-1)
        values, ids = table.topk(min(self.num_logprobs, table.shape[-1]), dim=-1)
        return table.gather(-1, chosen[..., None])[..., 0].tolist(), values.tolist(), ids.tolist()

    def _compact(self) -> None:
        """Let finished rows go, when they are many or have waited long."""
        self._steps_since_compaction += 1
        finished = self.state.is_finished
        num_finished = sum(finished)
        if num_finished == 0 or (
            num_finished * _COMPACT_SHARE < len(finished) and self._steps_since_compaction < _COMPACT_STEPS
        ):
            return
        self._steps_since_compaction = 0
        rows = [row for row, is_finished in enumerate(finished) if not is_finished]
        self.roles.select_rows(rows)
        self.sampler.select_rows(rows)
        self.state.select_rows(rows)
        self._num_run = [self._num_run[row] for row in rows]
