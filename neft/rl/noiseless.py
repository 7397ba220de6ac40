"""No noise in preference and reward training: checked before a run and at each of its steps."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neft.errors import NoiseError
from neft.noising import input_embedding, noise


def refuse_noise(model: nn.Module) -> None:
    """Checks that neither neft's noise nor transformers' own is attached to a model.

    Raises:
        NoiseError: one of them is, or the model has no input embedding.
    """
    input_embedding(model)
    try:
        # A second attachment is what `noise` refuses; at alpha 0 the first would change nothing.
        with noise(model, alpha=0.0):
            pass
    except NoiseError as error:
        raise NoiseError(
            "noise is attached to this model, and would reach its samples and the reference's log-probabilities; "
            "leave the `with neft.noise(...)` block before preference or reward training."
        ) from error


class NoNoise(TrainerCallback):
    """Refuses noise at the beginning of every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Checks the model.

        Raises:
            NoiseError: noise is attached to it.
        """
        refuse_noise(self.model)
