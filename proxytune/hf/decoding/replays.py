"""The recorded forwards of one pass: which shapes come again, and are worth recording."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor

from proxytune.hf.decoding.arena import Arena
from proxytune.hf.decoding.operators import UnrecordableError
from proxytune.hf.decoding.recording import Recording, record

MOST_TOKENS = 16  # in one forward: with more, the kernels are what takes the time
_MOST_RECORDINGS = 64  # drafting has a few widths, and a growing answer some numbers of columns

# Times that a shape runs as it is before it is recorded, which costs what two or three replays save. A batch gets
# smaller as it goes on and may not come back to a shape; a single row does.
_PATIENCE_OF_ONE_ROW, _PATIENCE = 0, 2

Forward = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Prepared:
    """A recording and the tensors that it reads."""

    inputs: tuple[Tensor, Tensor]
    recording: Recording


class Replays:
    """Runs forwards over one cache, of token ids and the positions of their first: by replaying what was recorded.

    A shape of several rows is recorded when it has come some times.
    """

    def __init__(self) -> None:
        self._num_seen: Counter[Hashable] = Counter()
        self._prepared: dict[Hashable, _Prepared] = {}
        self._arena = Arena()
        self._is_off = False
        self._is_cold = False

    def takes(self, num_tokens: int) -> bool:
        """Return whether a forward over so many tokens of all rows is worth recording, and can be."""
        return num_tokens <= MOST_TOKENS and not self._is_off

    def run(self, key: Hashable, forward: Forward, ids: Tensor, first: Tensor) -> Tensor:
        """Return what `forward(ids, first)` does.

        Args:
            key: Equal for forwards that differ in their inputs' contents alone.
            forward: Reads only its arguments, weights, and what it changes itself.
            ids: Token ids.
            first: Positions.
        """
        prepared = self._prepared.pop(key, None)
        if prepared is not None:
            self._prepared[key] = prepared  # as the latest that was used
            for target, value in zip(prepared.inputs, (ids, first), strict=True):
                target.copy_(value)
            return prepared.recording.replay()
        self._num_seen[key] += 1
        if self._num_seen[key] <= (_PATIENCE_OF_ONE_ROW if len(ids) == 1 else _PATIENCE):
            return forward(ids, first)
        self._is_cold = True
        inputs = ids.clone(), first.clone()
        try:
            recording, result = record(lambda: forward(*inputs), inputs, self._arena)
        except UnrecordableError:
            self._is_off, self._is_cold = True, False
            return forward(ids, first)
        while len(self._prepared) >= _MOST_RECORDINGS:
            del self._prepared[next(iter(self._prepared))]
        self._prepared[key] = _Prepared(inputs, recording)
        return result

    def take_cold(self) -> bool:
        """Return whether anything was recorded since the last call of this."""
        found, self._is_cold = self._is_cold, False
        return found

    def clear(self) -> None:
        """Forget all: the cache has moved."""
        self._num_seen.clear()
        self._prepared.clear()
