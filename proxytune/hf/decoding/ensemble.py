"""The roles of one batch as passes: what they read, what the combination of their logits is, and who drafts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import RemoteError
from proxytune.hf.decoding.adapter_pass import AdapterPass, SharedPair
from proxytune.hf.decoding.passes import Pass, Prompts
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.decoding.remote_pass import RemotePass
from proxytune.hf.decoding.stats import Stopwatch
from proxytune.hf.decoding.workspace import Workspaces
from proxytune.hf.role import RoleModel
from proxytune.rules import Rule
from proxytune.steering import Strengths

DRAFT = -1  # the place of a draft model, which is no role of the composite


class Ensemble:
    """Passes of base, expert and anti over one batch.

    Attributes:
        drafts_itself: Whether an expert drafts, whose logits are then part of the combination.
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
        ends: Collection[int] = (),
        is_cancelled: Callable[[], bool] = bool,
        workspaces: Workspaces | None = None,
    ) -> None:
        """Group the roles that take part into passes.

        Args:
            model: The composite.
            role_ids: Per row the prompt ids of every role.
            strengths: Of every row and pair; a pair that is not active is not run at all.
            rule: How the roles' logits are combined.
            shared: Pairs of the composite that can run in one pass.
            draft: A model that drafts in the expert's place.
            stopwatch: Takes the times of the passes.
            ends: Ids that end a row; for a base behind an API, which is not asked for more than counts.
            is_cancelled: Looked at while such a base is waited for.
            workspaces: Where forwards are recorded and replayed, on the CPU: what earlier batches left.
        """
        self._width = int(model.config.vocab_size)
        self._device = model.device
        self._stopwatch = stopwatch
        self._rule = rule
        self._pairs = [pair for pair, is_active in zip(model.pair_roles, strengths.active, strict=True) if is_active]
        self._strengths = strengths.of_active_pairs(self._device)
        self.drafts_itself = draft is None and bool(self._pairs)
        self._drafter_place = self._pairs[0][0] if self.drafts_itself else DRAFT
        places = {0, *(place for pair in self._pairs for place in pair)}
        prompts = {place: Prompts([row[place] for row in role_ids]) for place in range(len(model.roles))}
        together = {pair: found for pair, found in shared.items() if pair in self._pairs}
        self._passes: list[Pass] = []
        self._remote: RemotePass | None = None
        if model.roles[0].is_remote:
            self._remote = RemotePass(model.roles[0], prompts[0], ends=ends, is_cancelled=is_cancelled)
            places.discard(0)
        for group in _groups(model.roles, sorted(places), self._drafter_place, list(together)):
            roles, read = [model.roles[place] for place in group], [prompts[place] for place in group]
            pair = together.get((group[0], group[-1]))
            if pair is None:
                self._passes.append(Pass(roles, group, read, workspaces=workspaces))
            else:
                is_alone = all(self._num_uses(place) == 1 for place in group)
                self._passes.append(AdapterPass(roles, group, read, pair, is_alone=is_alone, workspaces=workspaces))
        self._draft_pass = None if draft is None else Pass([draft], [DRAFT], [prompts[0]], workspaces=workspaces)

    @property
    def can_draft(self) -> bool:
        """Whether there is anyone to draft: not where the base runs alone."""
        return bool(self._pairs) and (self.drafts_itself or self._draft_pass is not None)

    @property
    def first_draft_is_free(self) -> bool:
        """Whether a first draft costs nothing: the expert reads alone in any case, and what it says is used."""
        drafter = next((member for member in self._passes if self._drafter_place in member.places), None)
        return drafter is not None and len(drafter.places) == 1 and self._remote is None

    @property
    def failures(self) -> Mapping[int, RemoteError]:
        """Rows of the last step whose request to a base behind an API failed for good, and why."""
        return {} if self._remote is None else self._remote.failures

    @property
    def masses(self) -> Sequence[Sequence[float]] | None:
        """Seen share of such a base's probability in the last step, per row and place; None for a base here."""
        return None if self._remote is None else self._remote.masses

    def read_prompts(self, room: int, longest: int = 0) -> Tensor:
        """Read every role's prompt and return the combined logits `[B, 1, V]`; `room`, `longest`: as in a pass."""
        found: dict[int, Tensor] = {}
        if self._remote is not None:
            with self._stopwatch.of(self._remote.name):
                self._remote.begin_prompts()
        for member in self._all_passes():
            with self._stopwatch.of(member.name):
                found |= member.read_prompts(room, longest)
        return self._combined(found | self._gathered())

    def begin(self, token_ids: Tensor, reading: Reading) -> None:
        """Let a base behind an API have its requests for what `read` will read, `[B, T]`, before anyone else reads."""
        if self._remote is not None:
            with self._stopwatch.of(self._remote.name):
                self._remote.begin(token_ids, reading)

    def draft(self, token_ids: Tensor, reading: Reading) -> Tensor:
        """Let the drafter read `[B, T]` tokens and return its logits `[B, T, V]`, `V` the shared ids."""
        drafter = self._draft_pass
        which = None
        if drafter is None:
            drafter = next(member for member in self._passes if self._drafter_place in member.places)
            which = slice(0, 1)
        with self._stopwatch.of(drafter.roles[0].name):
            found = drafter.read(token_ids, reading.offsets, reading.farthest, which)
        return found[self._drafter_place][..., : self._width]

    def read(self, token_ids: Tensor, reading: Reading, expert: Tensor | None = None) -> Tensor:
        """Let the roles read `[B, T]` tokens, those of `begin`, and return the combined logits `[B, T, V]`.

        `expert` are the drafting expert's logits for these tokens, which then does not read them again.
        """
        found: dict[int, Tensor] = {}
        if expert is not None:
            found[self._drafter_place] = expert
        for member in self._passes:
            which = None
            if expert is not None and self._drafter_place in member.places:
                if len(member.places) == 1:
                    continue
                which = slice(1, len(member.places))
            names = [role.name for role in member.roles[which or slice(None)]]
            with self._stopwatch.of("+".join(names)):
                found |= member.read(token_ids, reading.offsets, reading.farthest, which)
        return self._combined(found | self._gathered())

    def pin(self, room: int) -> None:
        """Fix slots for answers of `room` tokens."""
        for member in self._all_passes():
            member.pin(room)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        for member in self._all_passes():
            member.keep(rows)
        if self._remote is not None:
            self._remote.keep(rows)
        self._strengths = self._strengths[torch.tensor(rows, device=self._device)]

    def take_cold(self) -> bool:
        """Return whether anything since the last call of this took longer than it will when it comes again."""
        cold = [member.take_cold() for member in self._all_passes()]
        return any(cold)

    def release(self) -> None:
        """Leave what can be used again to later batches."""
        for member in self._all_passes():
            member.release()

    def _num_uses(self, place: int) -> int:
        """Return how often a role's logits are part of the combination."""
        return [0, *(place for pair in self._pairs for place in pair)].count(place)

    def _all_passes(self) -> list[Pass]:
        return self._passes if self._draft_pass is None else [*self._passes, self._draft_pass]

    def _gathered(self) -> dict[int, Tensor]:
        """Return what a base behind an API said, by its place; nothing where the base is here."""
        if self._remote is None:
            return {}
        with self._stopwatch.of(self._remote.name):
            return self._remote.gather()

    def _combined(self, found: dict[int, Tensor]) -> Tensor:
        width = self._width
        pairs = [
            (found[expert][..., :width].to(self._device), found[anti][..., :width].to(self._device))
            for expert, anti in self._pairs
        ]
        return self._rule.combine(found[0][..., :width], pairs, self._strengths)


def _groups(
    roles: Sequence[RoleModel], places: Sequence[int], drafter_place: int, together: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """Return the places that run together: adapter and anti, or those of one model with one adapter.

    Whoever drafts leads its group.
    """
    paired = {place for pair in together for place in pair}
    groups: dict[tuple[int, str | None], list[int]] = {}
    for place in places:
        if place not in paired:
            groups.setdefault((id(roles[place].model), roles[place].adapter_name), []).append(place)
    alike = [sorted(group, key=lambda place: (place != drafter_place, place)) for group in groups.values()]
    return [*alike, *(list(pair) for pair in together)]
