"""The pass of a base behind an API: rows of token ids go out, distributions come back while the small models run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from proxytune.errors import RemoteError
from proxytune.hf.decoding.passes import Prompts
from proxytune.hf.decoding.reading import Reading
from proxytune.hf.remote_base import cancel, fill
from proxytune.hf.role import RoleModel
from proxytune.remote.distribution import Distribution, Query

_GLANCE_S = 0.1  # between two looks at whether whoever waits has gone


@dataclass(frozen=True)
class _Asked:
    """What went out: of a row, how many positions, and what will be the answer; nothing for rows that need none."""

    num_places: int
    answers: Mapping[int, Future[list[Distribution]]]


class RemotePass:
    """The rows of a base behind an API. It keeps what each has read; the server keeps nothing that is counted on.

    Attributes:
        places: Of its role among the composite's.
        name: Of its role.
        failures: Per row of the last step whose request failed for good, why.
        masses: Per row of the last step the seen share of the probability at each place.
    """

    def __init__(
        self,
        role: RoleModel,
        prompts: Prompts,
        *,
        ends: Collection[int] = (),
        is_cancelled: Callable[[], bool] = bool,
    ) -> None:
        """Take the role and its prompts.

        Args:
            role: The base.
            prompts: Its own.
            ends: Ids that end a row: what comes behind one is not asked for.
            is_cancelled: Looked at while waiting.
        """
        self.places = [0]
        self.name = role.name
        self.failures: dict[int, RemoteError] = {}
        self.masses: list[list[float]] = []
        self._role = role
        self._rows = [list(row) for row in prompts.rows]
        self._starts = prompts.lengths
        self._ends = frozenset(ends)
        self._is_cancelled = is_cancelled
        self._asked = _Asked(0, {})

    def begin_prompts(self) -> None:
        """Send all prompts."""
        self._send(1, {row: Query(tuple(ids), 1) for row, ids in enumerate(self._rows)})

    def begin(self, token_ids: Tensor, reading: Reading) -> None:
        """Send what rows read up to `token_ids` `[B, T]`, the first of which stand at the reading's places.

        What a row has read beyond is forgotten: drafts that were not kept. Only `reading.wanted` places are asked for.
        """
        queries = {}
        for row, tokens in enumerate(token_ids.tolist()):
            if reading.wanted[row] == 0:
                continue
            del self._rows[row][self._starts[row] + reading.farthest[row] :]
            self._rows[row] += tokens
            count = min(reading.wanted[row], self._first_end(tokens))
            query = self._rows[row][: len(self._rows[row]) - len(tokens) + count]
            queries[row] = Query(tuple(query), count)
        self._send(token_ids.shape[1], queries)

    def gather(self) -> dict[int, Tensor]:
        """Wait for what was sent; return the logits `[B, T, V]`, 0 where nothing was asked for or the row has failed.

        Interrupted or cancelled, it takes back what has not been sent.
        """
        asked, self._asked = self._asked, _Asked(0, {})
        self.failures = {}
        self.masses = [[1.0] * asked.num_places for _ in self._rows]
        table = np.zeros((len(self._rows), asked.num_places, self._role.logits_width), dtype=np.float32)
        try:
            self._wait(list(asked.answers.values()))
            for row, answer in asked.answers.items():
                try:
                    found = _result(answer)
                except RemoteError as error:
                    self.failures[row] = error
                    continue
                for place, distribution in enumerate(found):
                    fill(table[row, place], distribution)
                    self.masses[row][place] = distribution.mass
        finally:
            cancel(list(asked.answers.values()))
        return {self.places[0]: torch.from_numpy(table).to(self._role.device)}

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._rows = [self._rows[row] for row in rows]
        self._starts = [self._starts[row] for row in rows]

    def pin(self, room: int) -> NoReturn:
        """Refuse: no graph can wait for a server."""
        raise RuntimeError("a base behind an API has no slots to pin.")

    def _first_end(self, tokens: Sequence[int]) -> int:
        """Return how many tokens stand before the first draft that would end the row."""
        drafts = enumerate(tokens[1:], 1)
        return next((place for place, token_id in drafts if token_id in self._ends), len(tokens))

    def _send(self, num_places: int, queries: Mapping[int, Query]) -> None:
        model = self._role.model
        futures = model.remote.submit(list(queries.values())) if queries else []
        self._asked = _Asked(num_places, dict(zip(queries, futures, strict=True)))

    def _wait(self, answers: Sequence[Future[list[Distribution]]]) -> None:
        """Wait for all answers, or until whoever waits has gone."""
        left = set(answers)
        while left and not self._is_cancelled():
            left = wait(left, timeout=_GLANCE_S).not_done


def _result(answer: Future[list[Distribution]]) -> list[Distribution]:
    """Return what a request gave, without waiting.

    Raises:
        RemoteError: It failed for good, or nobody waits for it any more.
    """
    if not answer.done():
        raise RemoteError("the request was taken back: whoever asked for the text has gone.")
    return answer.result()
