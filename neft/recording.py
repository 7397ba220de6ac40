"""The record of a run: its inputs and its result."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from neft.config import TrainingConfig
from neft.data import checksum

_PACKAGES = ("proxytune", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        output: The folder with the model or adapter.
        is_adapter: True if it is an adapter.
        steps: Optimizer steps taken, before a resume too.
        epochs: Passes over the data.
        train_loss: Mean training loss over the run, with noise, in nats per learned token.
        eval_loss: Noise-free held-out loss of the saved weights, in nats per learned token.
        evaluations: Step and loss of every evaluation.
        saved_step: The step whose weights were saved (an earlier one after early stopping).
        num_rows: Training rows used.
        num_eval_rows: Held-out rows used.
        num_dropped: Rows left out because they are longer than the window, in both.
        noise_to_signal: Noise against embedding weights, at the mean document length.
        num_processes: Processes that trained together.
        effective_batch_size: Rows per optimizer step, over all processes.
        seconds: Time in the training loop, evaluation included, before a resume too.
    """

    output: Path
    is_adapter: bool
    steps: int
    epochs: float
    train_loss: float
    eval_loss: float | None
    evaluations: tuple[tuple[int, float], ...]
    saved_step: int
    num_rows: int
    num_eval_rows: int
    num_dropped: int
    noise_to_signal: float
    num_processes: int
    effective_batch_size: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        evaluations = [list(entry) for entry in self.evaluations]
        return {**asdict(self), "output": str(self.output), "evaluations": evaluations}


def identity_of(config: TrainingConfig) -> dict[str, Any]:
    """Returns what makes two runs the same: the options that decide the weights, and the data's checksums.

    Raises:
        DataError: a data file cannot be read.
    """
    paths = {"train": config.data, "eval": config.eval_data, "chat_template": config.chat_template}
    return {
        "config": config.record(),
        "data": {name: checksum(path) for name, path in paths.items() if path is not None},
    }


def run_record(result: TrainingResult, identity: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Returns the account that lies beside the weights."""
    values = result.to_dict()
    del values["output"]
    return {**identity, "rows": rows, "result": values, "versions": versions(), "finished": now()}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that decide the weights."""
    by_package = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            by_package[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_package


def now() -> str:
    """Returns the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
