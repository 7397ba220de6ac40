"""A check on the actual model that the noise is on in training, off in evaluation, and as strong as asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neft.kinds import NoiseKind
from neft.noising import input_embedding, noise
from neft.rule import document_ids

_VARIANCES: dict[NoiseKind, float] = {"uniform": 1 / 3, "gaussian": 1.0, "gaussian-l2": 1 / 3}
_STRENGTH_TOLERANCE = 0.1


@dataclass(frozen=True)
class LiveCheck:
    """The result of a few forward passes of the model.

    Attributes:
        alpha: Requested strength.
        measured_alpha: Distance by which the embeddings of real tokens were moved, as an α.
        is_on_in_training: True if the logits move in training mode.
        is_fresh: True if two passes have different noise.
        is_off_in_evaluation: True if the logits stay bit-equal in evaluation mode.
        is_padding_clean: True if the embeddings of padding stay bit-equal.
        is_detached: True if the logits are bit-equal to those before, once the noise is taken off.
        logit_shift: Largest change of a logit of a real token in training mode.
    """

    alpha: float
    measured_alpha: float
    is_on_in_training: bool
    is_fresh: bool
    is_off_in_evaluation: bool
    is_padding_clean: bool
    is_detached: bool
    logit_shift: float

    @property
    def is_right(self) -> bool:
        """True if every check holds and the measured α is within a tenth of the requested one."""
        facts = (self.is_on_in_training, self.is_fresh, self.is_off_in_evaluation, self.is_padding_clean)
        is_strong = abs(self.measured_alpha - self.alpha) <= _STRENGTH_TOLERANCE * self.alpha
        return all(facts) and self.is_detached and is_strong


@dataclass(frozen=True)
class _Pass:
    logits: Tensor
    embeddings: Tensor


def check_live(
    model: nn.Module, batch: Mapping[str, Tensor], *, alpha: float, kind: NoiseKind = "uniform", seed: int = 0
) -> LiveCheck:
    """Attaches the noise to a model, runs it in both modes, and compares; weights and modes stay as they were.

    Dropout, if there is any, draws the same in every pass, so that nothing but the noise makes a difference.

    Args:
        model: A decoder-only language model.
        batch: `input_ids` and `attention_mask`, `[B, T]`; best with some padding.
        alpha: Above 0.
        kind: Distribution.
        seed: Of the noise.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with _modes_kept(model):
        model.eval()
        quiet = _run(model, inputs)
        with noise(model, alpha=alpha, seed=seed, kind=kind):
            evaluated = _run(model, inputs)
        model.train()
        clean = _run(model, inputs)
        with noise(model, alpha=alpha, seed=seed, kind=kind):
            first, second = _run(model, inputs), _run(model, inputs)
        after = _run(model, inputs)
    is_real = inputs["attention_mask"].to(clean.logits.device) != 0
    shift = (first.logits - clean.logits)[is_real].abs().max().item()
    moved = first.embeddings - clean.embeddings
    return LiveCheck(
        alpha=alpha,
        measured_alpha=_alpha_of(moved, inputs["attention_mask"], kind),
        is_on_in_training=shift > 0,
        is_fresh=not torch.equal(first.embeddings, second.embeddings),
        is_off_in_evaluation=torch.equal(quiet.logits, evaluated.logits),
        is_padding_clean=not bool(moved[~is_real].any()),
        is_detached=torch.equal(clean.logits, after.logits),
        logit_shift=shift,
    )


def embedding_scale(model: nn.Module) -> float:
    """Returns by what factor the embedding module scales its weights (Gemma: √d), measured by running it."""
    embedding = input_embedding(model)
    weight = next(embedding.parameters())
    ids = torch.arange(min(256, weight.shape[0]), device=weight.device)
    with _modes_kept(model), torch.no_grad():
        model.eval()
        output = embedding(ids.unsqueeze(0))[0].float()
    # A row of zeros (padding) has no ratio and no weight in this one.
    scale: float = (output.norm() / weight[ids].detach().float().norm()).item()
    return scale


@torch.no_grad()
def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> _Pass:
    seen: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output.detach().float().clone())

    device = next(model.parameters()).device
    # Registered after the noise, so that it sees what the model sees.
    watch = input_embedding(model).register_forward_hook(look)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            logits: Tensor = model(**{name: x.to(device) for name, x in inputs.items()}, use_cache=False).logits
    finally:
        watch.remove()
    return _Pass(logits.float(), seen[0])


def _alpha_of(moved: Tensor, attention_mask: Tensor, kind: NoiseKind) -> float:
    """Returns the α whose noise has this root mean square, each position scaled by its document's length."""
    documents = document_ids((moved.shape[0], moved.shape[1]), attention_mask=attention_mask.to(moved.device))
    lengths = (documents >= 0).sum(dim=1, keepdim=True).expand_as(documents)
    squares = moved.square().mean(dim=-1) * lengths * moved.shape[-1] / _VARIANCES[kind]
    return math.sqrt(squares[documents >= 0].mean().item())


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
