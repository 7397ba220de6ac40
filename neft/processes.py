"""The processes of one run (torchrun, accelerate launch): which this is, and how they wait for each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; a run that was not launched as several is process 0 of 1."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output, the log and the progress bar."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def total(self, *values: float) -> list[float]:
        """Returns the sums of the values over the processes."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self._device())
        torch.distributed.all_reduce(summed)
        return [float(value) for value in summed]

    def any(self, is_so: bool) -> bool:
        """Returns whether it is so in at least one process."""
        return self.total(float(is_so))[0] > 0

    def _device(self) -> torch.device:
        on_host = torch.distributed.get_backend() == "gloo"
        return torch.device("cpu") if on_host else torch.device("cuda", torch.cuda.current_device())


ALONE = Processes(rank=0, count=1)
"""A run of one process."""


def uses_cpu() -> bool:
    """Returns whether there is no accelerator to train on."""
    return not torch.accelerator.is_available()
