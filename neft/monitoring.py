"""Callbacks around the optimizer steps: the noise's step, log, progress bar, TensorBoard, checkpoints."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neft.errors import DivergenceError, InputError
from neft.interrupting import Interruption
from neft.noising import NoiseHandle
from neft.processes import Processes


def require_finite(loss: float, what: str, *, step: int) -> None:
    """Checks a loss.

    Raises:
        DivergenceError: it is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise DivergenceError(f"the {what} loss is {loss} at step {step}; lower learning_rate or alpha.")


class NoiseStep(TrainerCallback):
    """Tells the noise which optimizer step it is in, so that a resumed run draws the same."""

    def __init__(self, handle: NoiseHandle) -> None:
        self.handle = handle

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the noise of the step."""
        self.handle.step = state.global_step


class CheckpointSchedule(TrainerCallback):
    """Asks for a checkpoint every few steps, and after the step in which the user stopped the run, in every process.

    None is made after the last step: what follows it is the output itself.
    """

    def __init__(self, *, every: int | None, interruption: Interruption, processes: Processes) -> None:
        self.every = every
        self.interruption = interruption
        self.processes = processes

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decides; runs after the evaluation, whose state the checkpoint holds."""
        is_stopped = self.processes.any(self.interruption.is_requested)
        self.interruption.is_requested = is_stopped
        if control.should_training_stop:
            return
        if is_stopped or (self.every is not None and state.global_step % self.every == 0):
            control.should_save = True


class TensorBoardWriter:
    """Writes the numbers of the log as TensorBoard scalars."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Opens an event file; after a resume, what an earlier process wrote from `first_step` on is hidden.

        Raises:
            InputError: TensorBoard is missing, or the folder cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"tensorboard needs the package ({error}); pip install 'proxytune[neft]'.") from error
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step)
        except OSError as error:
            raise InputError(f"tensorboard folder {folder} cannot be written: {error.strerror}.") from error

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds `train/…` scalars, and `eval/loss` for `eval_loss`."""
        for name, value in values.items():
            tag = "eval/loss" if name == "eval_loss" else f"train/{name}"
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class RunLog(TrainerCallback):
    """Writes a JSON line per logged step and draws the progress bar on stderr; a loss that is not finite raises."""

    def __init__(
        self,
        path: Path,
        *,
        show_progress: bool,
        writes: bool = True,
        tensorboard: TensorBoardWriter | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        """`writes` is off in all processes but one; `seconds_before` is the time of the run before it was resumed."""
        self.path = path
        self.show_progress = show_progress and writes
        self.writes = writes
        self.tensorboard = tensorboard
        self._seconds_before = seconds_before
        self._start_s = time.monotonic()
        self._bar: tqdm[Any] | None = None

    @property
    def seconds(self) -> float:
        """Time in the training loop, over all resumes."""
        return round(self._seconds_before + time.monotonic() - self._start_s, 3)

    def write(self, **values: Any) -> None:
        """Appends one line; readable while the run goes on."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "seconds": self.seconds}) + "\n")
        if self.tensorboard is not None:
            scalars = {name: value for name, value in values.items() if name not in ("step", "epoch")}
            self.tensorboard.write(values["step"], scalars)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock and the bar."""
        self._start_s = time.monotonic()
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            desc="neft",
            file=sys.stderr,
            disable=not self.show_progress,
            mininterval=0.1 if sys.stderr.isatty() else 5.0,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Writes a training line (the Trainer's summary at the end is not one).

        Raises:
            DivergenceError: the loss is not finite.
        """
        if logs is None or "loss" not in logs:
            return
        loss = logs["loss"]
        require_finite(loss, "training", step=state.global_step)
        self.write(step=state.global_step, **logs)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def close(self) -> None:
        """Ends the bar and TensorBoard, also after an exception."""
        if self._bar is not None:
            self._bar.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
