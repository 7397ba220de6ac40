"""The share of top tokens that noise at inference changes; training with noise should lower it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neft.data import IGNORED, Example, PaddingCollator
from neft.kinds import NoiseKind
from neft.noising import input_embedding, noise


@torch.no_grad()
def top_token_flips(
    model: nn.Module,
    examples: Sequence[Example],
    collator: PaddingCollator,
    *,
    alphas: Sequence[float],
    batch_size: int,
    kind: NoiseKind = "uniform",
    seed: int = 0,
) -> dict[float, float]:
    """Returns for each alpha the share of learned tokens whose most likely token changes when noise is added.

    Everything but the noise is as in inference: dropout is off. The same seed gives every model the same noise as long
    as their batches and widths are the same.
    """
    modes = {module: module.training for module in model.modules()}
    flips = dict.fromkeys(alphas, 0)
    num_tokens = 0
    model.eval()
    try:
        for number, start in enumerate(range(0, len(examples), batch_size)):
            batch = collator(examples[start : start + batch_size])
            is_learned = batch.pop("labels")[:, 1:] != IGNORED
            clean = _top_tokens(model, batch)[is_learned]
            num_tokens += clean.numel()
            for alpha in alphas:
                with noise(model, alpha=alpha, seed=seed, kind=kind) as handle:
                    handle.step = number
                    flips[alpha] += int((_noised_top_tokens(model, batch)[is_learned] != clean).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {alpha: count / num_tokens for alpha, count in flips.items()}


def _noised_top_tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Returns the top tokens with the embedding alone in training mode, which is where the noise looks."""
    embedding = input_embedding(model)
    embedding.training = True
    try:
        return _top_tokens(model, batch)
    finally:
        embedding.training = False


def _top_tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(**{name: x.to(device) for name, x in batch.items()}, use_cache=False).logits
    return logits[:, :-1].argmax(dim=-1).cpu()
