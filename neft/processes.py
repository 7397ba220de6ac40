"""The processes of one run (torchrun, accelerate launch): which this is, and how they wait for each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import TrainingArguments

from neft.notices import notify

_Arguments = TypeVar("_Arguments", bound=TrainingArguments)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; a run that was not launched as several is process 0 of 1."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        """True in the process that writes the output, the log and the progress bar."""
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


def on_one_gpu(settings: _Arguments) -> _Arguments:
    """Returns the arguments with which a Trainer keeps to one GPU and does not use nn.DataParallel.

    Its threads would share one noise, and its batch is that of one GPU times their number.
    """
    if settings.n_gpu > 1:
        notify(
            f"{settings.n_gpu} GPUs are visible to one process, which uses one of them; for all: torchrun "
            f"--nproc-per-node {settings.n_gpu} -m neft …"
        )
        settings._n_gpu = 1  # as the Trainer itself does for a model that is split over GPUs
    return settings
