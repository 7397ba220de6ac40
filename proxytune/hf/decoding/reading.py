"""Where in their answers the rows of a batch read."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """Where the first of the tokens that rows read stands: on the device, and the same on the host.

    Attributes:
        offsets: `[B]`, its place in each answer.
        farthest: The same on the host.
        wanted: How many of the tokens count in each row, on the host: 0 for rows that have ended. For a base that is
            asked over the network; the others read them all.
    """

    offsets: Tensor
    farthest: Sequence[int]
    wanted: Sequence[int] = ()

    def ahead(self, steps: int) -> "Reading":
        """Return the reading `steps` tokens further on."""
        return Reading(self.offsets + steps, [place + steps for place in self.farthest])
