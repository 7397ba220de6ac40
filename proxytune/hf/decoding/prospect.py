"""What a cycle's drafts promise, draft by draft, as they come."""

from collections.abc import Sequence

from proxytune.hf.decoding.controller import Controller


class Prospect:
    """The drafts of one cycle: how sure the drafter was of each, and so how likely all up to it are right.

    Attributes:
        sureness: Per draft that was admitted, and row, the probability that the drafter gave it.
    """

    def __init__(self, controller: Controller, rooms: Sequence[int], *, is_open: bool) -> None:
        """Begin a cycle.

        Args:
            controller: Says what drafts are worth.
            rooms: Tokens that each row of the batch can still take; 0 for one that has ended.
            is_open: Whether the draft may be ended before the cycle is as wide as it may be.
        """
        self._controller = controller
        self._rooms = rooms
        self._num_rows = sum(room > 0 for room in rooms)
        self._survival = [controller.trust] * len(rooms)
        self.is_open = is_open
        self.sureness: list[list[float]] = []

    def admits(self, probabilities: Sequence[float]) -> bool:
        """Return whether the cycle takes one more draft, to which the drafter gives these probabilities, row by row."""
        width = len(self.sureness) + 1
        survival = [
            value * self._controller.rate(probability)
            for value, probability in zip(self._survival, probabilities, strict=True)
        ]
        useful = [value for value, room in zip(survival, self._rooms, strict=True) if room > width]
        if self.is_open and not self._controller.goes_on(self._num_rows, width, useful):
            return False
        self._survival = survival
        self.sureness.append(list(probabilities))
        return True

    def of_row(self, row: int) -> list[float]:
        """Return what the drafter gave each draft of a row."""
        return [probabilities[row] for probabilities in self.sureness]
