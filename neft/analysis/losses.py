"""Noise-free losses, document by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neft.data import IGNORED, Example, PaddingCollator


@dataclass(frozen=True, slots=True)
class DocumentLoss:
    """The cross-entropy of one document's learned tokens, summed, in nats."""

    total: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats per learned token."""
        return self.total / self.num_tokens


def mean_loss(losses: Sequence[DocumentLoss]) -> float:
    """Returns the loss in nats per learned token; every token weighs the same.

    >>> mean_loss([DocumentLoss(total=3.0, num_tokens=1), DocumentLoss(total=3.0, num_tokens=3)])
    1.5
    """
    return sum(loss.total for loss in losses) / sum(loss.num_tokens for loss in losses)


@torch.no_grad()
def document_losses(
    model: nn.Module, examples: Sequence[Example], collator: PaddingCollator, *, batch_size: int
) -> list[DocumentLoss]:
    """Returns each example's loss, in the examples' order; the model is in evaluation mode, and put back."""
    device = next(model.parameters()).device
    indices = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
    losses: dict[int, DocumentLoss] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            batch = {name: x.to(device) for name, x in collator([examples[index] for index in chosen]).items()}
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            per_token = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            totals, counts = per_token.sum(dim=1).tolist(), (labels != IGNORED).sum(dim=1).tolist()
            losses |= {p: DocumentLoss(t, n) for p, t, n in zip(chosen, totals, counts, strict=True)}
    finally:
        model.train(was_training)
    return [losses[index] for index in range(len(examples))]
