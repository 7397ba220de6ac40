"""Runner of a base behind an API: rows of token ids go out, distributions come back while the small models run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxytune.errors import RemoteError
from proxytune.hf.remote_base import cancel, fill
from proxytune.hf.role import RoleModel
from proxytune.remote.distribution import Distribution, Query

_POLL_S = 0.1  # between two looks at whether the caller has gone


@dataclass(frozen=True)
class _Submitted:
    """Requests on their way: positions per row, and the future of each row that needs one."""

    num_positions: int
    futures: Mapping[int, Future[list[Distribution]]]


class RemoteRunner:
    """Rows of a base behind an API. It keeps each row's tokens; the server keeps nothing that is counted on.

    Attributes:
        role_indices: Of its role in the composite.
        name: Of its role.
        failures: Per row of the last step whose request failed for good, its error.
        masses: Per row of the last step the seen share of the probability at each position.
    """

    def __init__(
        self,
        role: RoleModel,
        prompts: Sequence[Sequence[int]],
        *,
        eos_token_ids: Collection[int] = (),
        is_cancelled: Callable[[], bool] = bool,
    ) -> None:
        """Take the role and its prompts.

        Args:
            role: The base.
            prompts: Its token ids per row.
            eos_token_ids: Ids that end a row: tokens after one are not asked for.
            is_cancelled: Polled while waiting.
        """
        self.role_indices = [0]
        self.name = role.name
        self.failures: dict[int, RemoteError] = {}
        self.masses: list[list[float]] = []
        self._role = role
        self._rows = [list(row) for row in prompts]
        self._starts = [len(row) for row in prompts]
        self._eos_token_ids = frozenset(eos_token_ids)
        self._is_cancelled = is_cancelled
        self._submitted = _Submitted(0, {})

    def submit_prompts(self) -> None:
        """Send all prompts."""
        self._send(1, {row: Query(tuple(ids), 1) for row, ids in enumerate(self._rows)})

    def submit(self, token_ids: Tensor, offsets: Sequence[int], num_needed: Sequence[int]) -> None:
        """Send the rows up to `token_ids` `[B, T]`, the first of which are at `offsets` in their answers.

        Tokens a row has beyond that are forgotten: drafts that were rejected. Only `num_needed` positions per row are
        asked for.
        """
        queries = {}
        for row, tokens in enumerate(token_ids.tolist()):
            if num_needed[row] == 0:
                continue
            del self._rows[row][self._starts[row] + offsets[row] :]
            self._rows[row] += tokens
            count = min(num_needed[row], self._first_end(tokens))
            query = self._rows[row][: len(self._rows[row]) - len(tokens) + count]
            queries[row] = Query(tuple(query), count)
        self._send(token_ids.shape[1], queries)

    def gather(self) -> dict[int, Tensor]:
        """Wait for the requests; return the logits `[B, T, V]`, 0 where nothing was asked for or the row has failed.

        Interrupted or cancelled, it takes back requests that have not been sent.
        """
        submitted, self._submitted = self._submitted, _Submitted(0, {})
        self.failures = {}
        self.masses = [[1.0] * submitted.num_positions for _ in self._rows]
        table = np.zeros((len(self._rows), submitted.num_positions, self._role.logits_width), dtype=np.float32)
        try:
            self._wait(list(submitted.futures.values()))
            for row, future in submitted.futures.items():
                try:
                    distributions = _result(future)
                except RemoteError as error:
                    self.failures[row] = error
                    continue
                for position, distribution in enumerate(distributions):
                    fill(table[row, position], distribution)
                    self.masses[row][position] = distribution.mass
        finally:
            cancel(list(submitted.futures.values()))
        return {self.role_indices[0]: torch.from_numpy(table).to(self._role.device)}

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._rows = [self._rows[row] for row in rows]
        self._starts = [self._starts[row] for row in rows]

    def _first_end(self, tokens: Sequence[int]) -> int:
        """Return the number of tokens before the first draft that would end the row."""
        drafts = enumerate(tokens[1:], 1)
        return next((index for index, token_id in drafts if token_id in self._eos_token_ids), len(tokens))

    def _send(self, num_positions: int, queries: Mapping[int, Query]) -> None:
        model = self._role.model
        futures = model.remote.submit(list(queries.values())) if queries else []
        self._submitted = _Submitted(num_positions, dict(zip(queries, futures, strict=True)))

    def _wait(self, futures: Sequence[Future[list[Distribution]]]) -> None:
        """Wait for all requests, or until the caller has gone."""
        left = set(futures)
        while left and not self._is_cancelled():
            left = wait(left, timeout=_POLL_S).not_done


def _result(future: Future[list[Distribution]]) -> list[Distribution]:
    """Return a request's answer, without waiting.

    Raises:
        RemoteError: It failed for good, or its caller has gone.
    """
    if not future.done():
        raise RemoteError("the request was taken back: whoever asked for the text has gone.")
    return future.result()
