"""Evaluation while training: when, what is remembered of it, and when it stops the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neft.checkpoints import load_trained, save_trained
from neft.monitoring import RunLog, require_finite
from neft.processes import Processes


class Evaluation(TrainerCallback):
    """Evaluates every few steps (or at each epoch's end) and at the end; may stop early and go back to the best.

    The best trainable weights are held on disk, and only when there is a patience.
    """

    def __init__(
        self,
        evaluate: Callable[[], float],
        model: torch.nn.Module,
        log: RunLog,
        *,
        best: Path,
        processes: Processes,
        every: int | None,
        patience: int | None,
    ) -> None:
        self.evaluate = evaluate
        self.model = model
        self.log = log
        self.best = best
        self.processes = processes
        self.every = every
        self.patience = patience
        self.history: list[tuple[int, float]] = []
        self.best_step = 0
        self.best_loss = math.inf
        self._num_worse = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluates every `every` steps, or after an epoch's last step if no interval was given."""
        is_last_of_epoch = state.epoch is not None and float(state.epoch).is_integer()
        # Not in on_epoch_end: a checkpoint of that step is made before it, and must know of the evaluation.
        if is_last_of_epoch if self.every is None else state.global_step % self.every == 0:
            self._evaluate(state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluates the last weights, then puts the best ones back if there is a patience."""
        self._evaluate(state, control)
        if self.patience is not None and self.best_step != state.global_step:
            load_trained(self.model, self.best)

    @property
    def kept(self) -> tuple[int, float]:
        """Step and loss of the weights the run ends with."""
        return self.history[-1] if self.patience is None else (self.best_step, self.best_loss)

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run must know, as JSON values."""
        return {
            "history": [list(entry) for entry in self.history],
            "best_step": self.best_step,
            "best_loss": self.best_loss if self.history else None,
            "num_worse": self._num_worse,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        self.history = [(int(step), float(loss)) for step, loss in state["history"]]
        self.best_step = state["best_step"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self._num_worse = state["num_worse"]

    def _evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        if self.history and self.history[-1][0] == state.global_step:
            return
        loss = self.evaluate()
        require_finite(loss, "held-out", step=state.global_step)
        self.history.append((state.global_step, loss))
        self.log.write(step=state.global_step, eval_loss=loss)
        if loss < self.best_loss:
            self.best_step, self.best_loss, self._num_worse = state.global_step, loss, 0
            if self.patience is not None:
                save_trained(self.model, self.best, is_writer=self.processes.is_main)
                self.processes.wait()
            return
        self._num_worse += 1
        if self.patience is not None and self._num_worse >= self.patience:
            control.should_training_stop = True
