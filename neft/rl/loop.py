"""Running a trainer to its end, or to a plain word about why it could not."""

from __future__ import annotations

from typing import Any

import torch

from neft.errors import DivergenceError
from neft.monitoring import require_finite


def trained(trainer: Any) -> Any:
    """Runs a Trainer and returns its outcome.

    Raises:
        DivergenceError: the loss or the model's logits are no longer finite. Sampling from such logits fails inside
            torch, before a loss is logged.
    """
    try:
        outcome = trainer.train()
    except RuntimeError as error:
        if _is_finite(trainer.model):
            raise
        step = trainer.state.global_step
        raise DivergenceError(f"the logits are no longer finite at step {step}; lower learning_rate.") from error
    # The mean covers the steps after the last logged one.
    require_finite(outcome.training_loss, "training", step=outcome.global_step)
    return outcome


@torch.no_grad()
def _is_finite(model: torch.nn.Module) -> bool:
    """Returns whether the model still gives numbers: huge weights are finite, and what they give is not."""
    # More than one id: the embedding of a padding id is zero, and stays it.
    input_ids = torch.arange(8, device=next(model.parameters()).device).unsqueeze(0)
    return bool(torch.isfinite(model(input_ids=input_ids).logits).all())
