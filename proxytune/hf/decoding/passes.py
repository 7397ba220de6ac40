"""A pass: one forward of one model that serves one role, or several whose rows are stacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from proxytune.hf.decoding.linear import onednn_linear
from proxytune.hf.decoding.masks import LayerKinds
from proxytune.hf.decoding.replays import MOST_TOKENS, Replays
from proxytune.hf.decoding.slots import Placement, SlotCache, flat_slots
from proxytune.hf.decoding.workspace import Workspace, Workspaces
from proxytune.hf.role import RoleModel

_ALIGNED = 8  # columns: what CUDA's kernels want of a mask
_MOST_ROOM, _MAX_PADDING = 1024, 16  # columns for an answer from the start, and for drafts behind its end
_BUCKET = 128  # columns: what recorded forwards round up to, as one holds for one number of them


@dataclass(frozen=True)
class Prompts:
    """The prompts of one role: ids per row."""

    rows: Sequence[Sequence[int]]

    @property
    def lengths(self) -> list[int]:
        """Number of ids per row."""
        return [len(row) for row in self.rows]


class Pass:
    """Roles that share a model (and its adapter), their prompts and their slots.

    The rows of the first role come first, then those of the second, each role's in the batch's order. Positions of a
    row are those of its role's prompt and then of the answer that all roles share.

    Attributes:
        places: Of its roles among the composite's.
    """

    def __init__(
        self,
        roles: Sequence[RoleModel],
        places: Sequence[int],
        prompts: Sequence[Prompts],
        *,
        workspaces: Workspaces | None = None,
    ) -> None:
        """`roles`, `places` and `prompts` go together; the roles differ in their prompts alone.

        With `workspaces`, forwards of a shape that comes again are recorded and replayed: on the CPU only.
        """
        self.places = list(places)
        self.roles = list(roles)
        self.role = roles[0]
        self.model: Any = self.role.model
        self._prompts = list(prompts)
        self._num_rows = len(prompts[0].rows)
        self._lengths = [prompt.lengths for prompt in prompts]
        self._starts = torch.tensor(self._lengths, device=self.device)
        self._kinds = LayerKinds.of(self.role.config)
        self._is_pinned = False
        self._workspaces = workspaces
        self._workspace: Workspace | None = None

    @property
    def device(self) -> torch.device:
        """Where its input goes."""
        return self.role.device

    @property
    def name(self) -> str:
        """Its roles' names, joined."""
        return "+".join(role.name for role in self.roles)

    def read_prompts(self, room: int, longest: int = 0) -> dict[int, Tensor]:
        """Read all prompts and return, per place, the logits `[B, 1, V]` behind them.

        Short rows are padded on the right: what stands there is written over before any query sees it.

        Args:
            room: Columns to have ready behind the longest prompt.
            longest: Most tokens of an answer. On a CPU, where columns cost nothing before they are used, so many are
                ready at once: recordings end where the cache moves.
        """
        rows = [row for prompt in self._prompts for row in prompt.rows]
        width = max(len(row) for row in rows)
        ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        if self._workspaces is not None and len(rows) <= MOST_TOKENS:
            room = max(room, min(longest + _MAX_PADDING, _MOST_ROOM))
        self._workspace = self._new_workspace(len(rows), width + room)
        self._required_cache().aim(Placement(rows=slice(0, len(rows)), bound=width, start=0))
        lasts = sorted({len(row) - 1 for row in rows})
        logits = self._run(
            {"input_ids": ids, "position_ids": torch.arange(width, device=self.device)[None].expand(len(rows), -1)},
            slice(0, len(self.places)),
            logits_to_keep=torch.tensor(lasts, device=self.device),
        )
        if len(lasts) > 1:
            column = torch.tensor([lasts.index(len(row) - 1) for row in rows], device=self.device)
            logits = logits[torch.arange(len(rows), device=self.device), column][:, None]
        return self._by_place(logits, slice(0, len(self.places)))

    def read(
        self, token_ids: Tensor, offsets: Tensor, farthest: Sequence[int], which: slice | None = None
    ) -> dict[int, Tensor]:
        """Read tokens of the answer and return, per place, the logits `[B, T, V]` behind each.

        Args:
            token_ids: `[B, T]`.
            offsets: `[B]`, the place in the answer of each row's first.
            farthest: The same on the host, to know how far the slots are read; unused where they are pinned.
            which: Of its roles, which take part; all by default.
        """
        which = which or slice(0, len(self.places))
        width = token_ids.shape[1]
        ids = token_ids.to(self.device)
        first = (self._starts[which] + offsets.to(self.device)).flatten()
        replays = None if self._is_pinned else self._required_workspace().replays
        if replays is None or not replays.takes(len(first) * width):
            bound = self._bound(which, farthest, width, _ALIGNED)
            logits = self._forward(ids, first, which=which, bound=bound)
        else:
            # Even widths alone, so that there is less to record. What a row reads beyond is written over.
            ids = pad(ids, (0, width % 2 if width > 1 else 0))
            bound = self._bound(which, farthest, ids.shape[1], _BUCKET, is_doubled=width > 1)
            forward = partial(self._forward, which=which, bound=bound)
            logits = replays.run((which.start, which.stop, ids.shape[1], bound), forward, ids, first)[:, :width]
        return self._by_place(logits, which)

    def take_cold(self) -> bool:
        """Return whether a forward since the last call of this took longer than the next of its shape will."""
        replays = None if self._workspace is None else self._workspace.replays
        return replays is not None and replays.take_cold()

    def _forward(self, token_ids: Tensor, first: Tensor, *, which: slice, bound: int) -> Tensor:
        """Read `[B, T]` tokens from positions `first` `[roles · B]` on, seeing `bound` columns; return the logits."""
        cache = self._required_cache()
        num_rows, width = token_ids.shape
        positions = first[:, None] + torch.arange(width, device=self.device)
        rows = slice(which.start * num_rows, which.stop * num_rows)
        cache.aim(Placement(rows=rows, bound=bound, slots=flat_slots(positions, cache.capacity, rows.start)))
        num_roles = which.stop - which.start
        return self._run(
            {
                "input_ids": token_ids.repeat(num_roles, 1) if num_roles > 1 else token_ids,
                "position_ids": self._embedded(positions),
                "attention_mask": self._kinds.masks(positions, bound, self.model.dtype),
            },
            which,
        )

    def pin(self, room: int) -> None:
        """Have slots for answers of `room` tokens, and read over all of them from now on, wherever the rows are.

        Then no shape and no address changes from step to step, as a recorded graph needs it.
        """
        self._is_pinned = True
        self._required_workspace().require(max(length for role in self._lengths for length in role) + room)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self._lengths = [[role[row] for row in rows] for role in self._lengths]
        self._starts = torch.tensor(self._lengths, device=self.device)
        stacked = [number * self._num_rows + row for number in range(len(self.places)) for row in rows]
        self._required_workspace().keep(torch.tensor(stacked, device=self.device))
        self._num_rows = len(rows)

    def release(self) -> None:
        """Leave the workspace to later batches; nothing can be read any more."""
        owner = self._workspace_owner
        if self._workspaces is not None and self._workspace is not None and owner is not None:
            self._workspaces.give(owner, len(self.places) * self._num_rows, self._workspace)
        self._workspace = None

    @property
    def _workspace_owner(self) -> Any:
        """The model for whose later batches the workspace is kept; None where adapters switch behind its weights."""
        return self.model if self.role.adapter is None else None

    def _new_workspace(self, num_rows: int, capacity: int) -> Workspace:
        owner = self._workspace_owner
        if self._workspaces is not None and owner is not None:
            return self._workspaces.take(owner, num_rows, capacity)
        cache = SlotCache(int(self.role.config.num_hidden_layers), num_rows, capacity)
        return Workspace(cache, None if self._workspaces is None else Replays())

    def _run(self, inputs: Mapping[str, Any], which: slice, **keep: Any) -> Tensor:
        arguments = {**inputs, "past_key_values": self._required_cache(), "use_cache": True}
        with onednn_linear(self.device):
            logits: Tensor = self.roles[which.start].logits(arguments, **keep)
        return logits

    def _bound(self, which: slice, farthest: Sequence[int], width: int, step: int, *, is_doubled: bool = False) -> int:
        """Return how many columns a forward reads: all, or a multiple of `step`, and have them.

        `farthest`: how many tokens of its answer each row has read before. `is_doubled`: a power of two times `step`.
        """
        workspace = self._required_workspace()
        if self._is_pinned:
            return workspace.cache.capacity
        ends = [length + offset for role in self._lengths[which] for length, offset in zip(role, farthest, strict=True)]
        end = max(ends) + width
        workspace.require(end)
        num_steps = -(-end // step)
        if is_doubled:
            num_steps = 1 << (num_steps - 1).bit_length()
        return min(num_steps * step, workspace.cache.capacity)

    def _embedded(self, positions: Tensor) -> Tensor:
        """Return positions inside the context: drafts behind a row's last token have none, and count for nothing."""
        context = self.role.max_context
        return positions if context is None else positions.clamp(max=context - 1)

    def _by_place(self, logits: Tensor, which: slice) -> dict[int, Tensor]:
        places = self.places[which]
        return dict(zip(places, logits.chunk(len(places)), strict=True))

    def _required_cache(self) -> SlotCache:
        return self._required_workspace().cache

    def _required_workspace(self) -> Workspace:
        if self._workspace is None:
            raise RuntimeError("read_prompts comes before read.")
        return self._workspace
