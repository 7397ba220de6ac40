"""The noise-free loss of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from neft.data import IGNORED, Example
from neft.processes import ALONE, Processes

BatchLoss = Callable[[torch.nn.Module, Mapping[str, Tensor]], Tensor]
"""Returns the mean loss of a batch over its learned tokens."""

Collator = Callable[[Sequence[Example]], Mapping[str, Tensor]]
"""Makes a batch of examples; `neft.data.PaddingCollator` is one."""


def own_loss(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the model's own loss of a batch."""
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


@torch.no_grad()
def evaluation_loss(
    model: torch.nn.Module,
    examples: Sequence[Example],
    collator: Collator,
    *,
    batch_size: int,
    processes: Processes = ALONE,
    batch_loss: BatchLoss = own_loss,
) -> float:
    """Returns the cross-entropy in nats per learned token, in evaluation mode; the mode is put back.

    Every token has the same weight, whatever the batches: batching changes only the speed (rows are sorted by length).
    Several processes share the batches, and all get the same number.
    """
    device = next(model.parameters()).device
    by_length = sorted(examples, key=lambda example: len(example.input_ids))
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    was_training = model.training
    model.eval()
    total, num_tokens = 0.0, 0
    try:
        for first in range(0, len(batches), processes.count):
            index = first + processes.rank
            # A sharded model runs in all processes at once, so one without a batch repeats the last, for nothing.
            batch = collator(batches[min(index, len(batches) - 1)])
            loss = batch_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
            num_learned = int((batch["labels"][:, 1:] != IGNORED).sum()) if index < len(batches) else 0
            if num_learned:
                total += loss.item() * num_learned
                num_tokens += num_learned
    finally:
        model.train(was_training)
    summed = processes.total(total, num_tokens)
    return summed[0] / summed[1]
