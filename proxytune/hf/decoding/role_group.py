"""Roles of one batch as runners: their forwards, the rule over their logits, and the drafter among them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import NonFiniteLogitsError, RemoteError
from proxytune.hf.decoding.cuda_graph import CudaGraphs
from proxytune.hf.decoding.remote_runner import RemoteRunner
from proxytune.hf.decoding.runners import LoraPairRunner, RoleRunner, SharedPair
from proxytune.hf.decoding.stats import Stopwatch
from proxytune.hf.role import RoleModel
from proxytune.rules import Rule
from proxytune.steering import Strengths, tables_of

DRAFT = -1  # the index of a draft model, which is no role of the composite


class RoleGroup:
    """Runners of base, expert and anti over one batch.

    Attributes:
        expert_drafts: True if an expert drafts, or the anti of one that is the base, whose logits then enter the rule.
        peaks: `[B, T]` of the last forward: NaN or infinite where a role's logits are broken.
    """

    def __init__(
        self,
        model: Any,
        role_ids: Sequence[Sequence[Sequence[int]]],
        strengths: Strengths,
        *,
        rule: Rule,
        shared: Mapping[tuple[int, int], SharedPair],
        draft: RoleModel | None = None,
        stopwatch: Stopwatch,
        eos_token_ids: Collection[int] = (),
        is_cancelled: Callable[[], bool] = bool,
        graphs: CudaGraphs | None = None,
        max_new_tokens: int = 0,
    ) -> None:
        """Group the roles that take part into runners.

        Args:
            model: The composite.
            role_ids: Per row the prompt ids of every role.
            strengths: Of every row and pair; a pair that is not active is not run at all.
            rule: Combines the roles' logits.
            shared: Pairs of the composite that can run in one forward.
            draft: A model that drafts in the expert's place.
            stopwatch: Takes the times of the runners.
            eos_token_ids: For a base behind an API, which is not asked for tokens after one.
            is_cancelled: Polled while such a base is waited for.
            graphs: Captures forwards of roles that support it.
            max_new_tokens: Most tokens that are run after the prompts, drafts included.
        """
        self._vocab_size = int(model.config.vocab_size)
        self._device = model.device
        self._stopwatch = stopwatch
        self._names = [role.name for role in model.roles]
        self._rule = rule
        self._pairs = [pair for pair, is_active in zip(model.pair_roles, strengths.active, strict=True) if is_active]
        self._strengths = strengths.of_active_pairs(self._device)
        self._rule_ends_at = math.inf if rule.schedule is None else rule.schedule.ends_at
        small = [index for index in _indices(self._pairs) if model.roles[index].model is not model.roles[0].model]
        self.expert_drafts = draft is None and bool(small)
        self._drafter_index = small[0] if self.expert_drafts else DRAFT
        indices = {0, *_indices(self._pairs)}
        prompts = {index: [row[index] for row in role_ids] for index in range(len(model.roles))}
        active_shared = {pair: part for pair, part in shared.items() if pair in self._pairs}
        self._remote: RemoteRunner | None = None
        if model.roles[0].is_remote:
            self._remote = RemoteRunner(
                model.roles[0], prompts[0], eos_token_ids=eos_token_ids, is_cancelled=is_cancelled
            )
            indices.discard(0)
        self._runners: list[RoleRunner] = []
        graph_options: dict[str, Any] = {"graphs": graphs, "max_new_tokens": max_new_tokens}
        for group in _groups(model.roles, sorted(indices), self._drafter_index, list(active_shared)):
            parts = [model.roles[index] for index in group], group, [prompts[index] for index in group]
            pair = active_shared.get((group[0], group[-1]))
            if pair is None:
                self._runners.append(RoleRunner(*parts, **graph_options))
            else:
                is_alone = rule.is_of_differences and all(self._num_uses(index) == 1 for index in group)
                self._runners.append(LoraPairRunner(*parts, pair, is_alone=is_alone, **graph_options))
        self._draft_runner = None if draft is None else RoleRunner([draft], [DRAFT], [prompts[0]], **graph_options)
        self._lengths = [[len(ids) for ids in row] for row in role_ids]
        self._offsets: Sequence[int] | None = None  # of the last forward; None for the prompts'
        self._role_logits: dict[int, Tensor] = {}
        self.peaks = torch.zeros(0, 0)

    @property
    def can_draft(self) -> bool:
        """True if there is a drafter: not where the base runs alone."""
        return bool(self._pairs) and (self.expert_drafts or self._draft_runner is not None)

    @property
    def failures(self) -> Mapping[int, RemoteError]:
        """Rows of the last step whose request to a base behind an API failed for good, and why."""
        return {} if self._remote is None else self._remote.failures

    @property
    def masses(self) -> Sequence[Sequence[float]] | None:
        """Seen share of such a base's probability in the last step, per row and position; None for a local base."""
        return None if self._remote is None else self._remote.masses

    def prefill(self) -> Tensor:
        """Run every role's prompt and return the combined logits `[B, 1, V]`."""
        logits: dict[int, Tensor] = {}
        if self._remote is not None:
            with self._stopwatch.of(self._remote.name):
                self._remote.submit_prompts()
        for runner in self._all_runners():
            with self._stopwatch.of(runner.name):
                logits |= runner.prefill()
        return self._combined(logits | self._gathered())

    def submit(self, token_ids: Tensor, offsets: Sequence[int], num_needed: Sequence[int]) -> None:
        """Send a base behind an API its requests for what `forward` will run, `[B, T]`, before the other roles run.

        `num_needed`: per row how many of the tokens count; 0 for finished rows.
        """
        if self._remote is not None:
            with self._stopwatch.of(self._remote.name):
                self._remote.submit(token_ids, offsets, num_needed)

    def draft_logits(self, token_ids: Tensor, offsets: Sequence[int]) -> Tensor:
        """Run the drafter over `[B, T]` tokens; return its logits `[B, T, V]`, V the shared ids, on the base's device.

        `offsets`: position in the answer of each row's first token.
        """
        runner = self._draft_runner or self._runner_of(self._drafter_index)
        with self._stopwatch.of(runner.roles[0].name):
            logits = runner.forward(token_ids, offsets, slice(0, 1))
        return logits[self._drafter_index][..., : self._vocab_size].to(self._device)

    def forward(self, token_ids: Tensor, offsets: Sequence[int], expert_logits: Tensor | None = None) -> Tensor:
        """Run the roles over `[B, T]` tokens, those of `submit`; return the combined logits `[B, T, V]`.

        `expert_logits` are the drafting expert's for these tokens, which then does not run them again.
        """
        self._offsets = offsets
        logits: dict[int, Tensor] = {}
        if expert_logits is not None:
            logits[self._drafter_index] = expert_logits
        if expert_logits is None and min(offsets) + 1 >= self._rule_ends_at:
            self._drop_pairs()
        for runner in self._runners:
            which = runner.all_roles
            if not self._pairs:
                if 0 not in runner.role_indices:
                    continue
                which = slice(base := runner.role_indices.index(0), base + 1)
            if expert_logits is not None and self._drafter_index in runner.role_indices:
                which = slice(1, which.stop)
                if which.start == which.stop:
                    continue
            with self._stopwatch.of("+".join(role.name for role in runner.roles[which])):
                logits |= runner.forward(token_ids, offsets, which)
        return self._combined(logits | self._gathered())

    def pop_warmup(self) -> bool:
        """Return whether a forward since the last call also set up what later ones use."""
        warmups = [runner.is_warmup for runner in self._all_runners()]
        for runner in self._all_runners():
            runner.is_warmup = False
        return any(warmups)

    def release(self) -> None:
        """Leave what can be used again to later batches."""
        for runner in self._all_runners():
            runner.release()

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        for runner in self._all_runners():
            runner.select_rows(rows)
        if self._remote is not None:
            self._remote.select_rows(rows)
        self._lengths = [self._lengths[row] for row in rows]
        index = torch.tensor(rows, device=self._device)
        self._strengths = self._strengths[index]

    def require_finite(self, row: int, position: int, request_index: int) -> None:
        """Raise for the role whose logits are broken at a row's `position` of the last forward.

        A role whose pairs all have α = 0 in the row changes nothing there, so its logits need not be finite.

        Raises:
            NonFiniteLogitsError: It names the role, `request_index` as the row, and the position in its sequence.
        """
        for index, logits in sorted(self._role_logits.items()):
            if self._is_used(index, row) and not bool(logits[row, position].amax().isfinite()):
                before = self._lengths[row][index] + (-1 if self._offsets is None else self._offsets[row])
                raise NonFiniteLogitsError(self._names[index], request_index, before + position)

    def _is_used(self, index: int, row: int) -> bool:
        """Return whether a role's logits can change a row's distribution."""
        strengths = self._strengths[row].tolist()
        return index == 0 or any(
            strength != 0 and index in pair for pair, strength in zip(self._pairs, strengths, strict=True)
        )

    def _num_uses(self, index: int) -> int:
        """Return how often a role's logits enter the rule."""
        return [0, *_indices(self._pairs)].count(index)

    def _runner_of(self, index: int) -> RoleRunner:
        return next(runner for runner in self._runners if index in runner.role_indices)

    def _drop_pairs(self) -> None:
        """Let the base go on alone."""
        self._pairs, self._strengths, self.expert_drafts = [], self._strengths[:, :0], False

    def _all_runners(self) -> list[RoleRunner]:
        return self._runners if self._draft_runner is None else [*self._runners, self._draft_runner]

    def _gathered(self) -> dict[int, Tensor]:
        """Return the logits of a base behind an API by its index; nothing for a local base."""
        if self._remote is None:
            return {}
        with self._stopwatch.of(self._remote.name):
            return self._remote.gather()

    def _combined(self, role_logits: dict[int, Tensor]) -> Tensor:
        logits = {index: table[..., : self._vocab_size].to(self._device) for index, table in role_logits.items()}
        self._role_logits = logits
        # A maximum is NaN where any value is: one reduction per role, read with the tokens.
        self.peaks = sum((table.amax(-1).float() for table in logits.values()), torch.zeros((), device=self._device))
        pairs = [tables_of(logits, pair) for pair in self._pairs]
        return self._rule(logits[0], pairs, self._strengths_at(logits[0].shape[1]))

    def _strengths_at(self, width: int) -> Tensor:
        """Return the strengths at the `width` positions whose logits the last forward gave."""
        schedule = self._rule.schedule
        if schedule is None:
            return self._strengths
        first = [0] * len(self._lengths) if self._offsets is None else [offset + 1 for offset in self._offsets]
        steps = torch.arange(width, device=self._device)
        return schedule.at(self._strengths, torch.tensor(first, device=self._device)[:, None] + steps)


def _indices(pairs: Sequence[tuple[int, int | None]]) -> list[int]:
    """Return the role indices of experts and antis, pair by pair."""
    return [index for pair in pairs for index in pair if index is not None]


def _groups(
    roles: Sequence[RoleModel], indices: Sequence[int], drafter_index: int, together: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Return the role indices that run together: adapter and anti, or those of one model with one adapter.

    The drafter leads its group.
    """
    paired = {index for pair in together for index in pair}
    groups: dict[tuple[int, str | None], list[int]] = {}
    for index in indices:
        if index not in paired:
            groups.setdefault((id(roles[index].model), roles[index].adapter_name), []).append(index)
    alike = [sorted(group, key=lambda index: (index != drafter_index, index)) for group in groups.values()]
    return [*alike, *(list(pair) for pair in together)]
