"""Isolation of packed documents in a model, measured by running it."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neft.data.examples import Example
from neft.data.packing import Pack, PackingCollator
from neft.errors import InputError

_LENGTHS = ((5, 7, 1), (6,))
# What rounding may do, relative to the largest logit: to a document packed instead of alone (batches of other shapes
# are rounded otherwise), and to one beside which others change (nothing, but where experts get other batches). In an
# untrained model of half precision a leak can hide below the first, and shows in the second.
_TOLERANCES = {torch.float64: (1e-6, 1e-8), torch.float32: (1e-4, 1e-5)}
_HALF_TOLERANCES = (5e-2, 1e-3)


def check_packing(model: nn.Module) -> None:
    """Refuses a model whose packed documents would see each other; it costs a few passes over a few tokens.

    Raises:
        InputError: the model leaks, or takes no position ids.
    """
    measured = _measured(model)
    if measured.is_clean:
        return
    name = type(_innermost(model)).__name__
    leak = measured.difference
    reason = "it takes no position_ids" if leak == math.inf else f"their logits move by {leak:.2g} next to others"
    raise InputError(f"{name} does not keep packed documents apart ({reason}); train it without packing.")


def packs_cleanly(model: nn.Module) -> bool:
    """Returns whether packed documents get the logits they have alone, within the rounding of the model's dtype."""
    return _measured(model).is_clean


def packing_leak(model: nn.Module) -> float:
    """Returns the largest difference between a packed document's logits and those it has alone.

    Random documents are packed in two rows, one of them with padding. The model is put into evaluation mode and back.
    Infinite for a model that takes no position ids: it cannot know where a document begins.
    """
    return _measured(model).difference


@dataclass(frozen=True)
class _Measured:
    """Largest changes of a document's logits.

    Attributes:
        difference: Between packed and alone.
        influence: When the documents beside it are changed.
        scale: The largest logit.
        tolerances: Largest effects that rounding may have on the first and the second, relative to the scale.
    """

    difference: float
    influence: float
    scale: float
    tolerances: tuple[float, float]

    @property
    def is_clean(self) -> bool:
        packed, beside = self.tolerances
        return self.difference <= packed * self.scale and self.influence <= beside * self.scale


@torch.no_grad()
def _measured(model: nn.Module) -> _Measured:
    if "position_ids" not in inspect.signature(_innermost(model).forward).parameters:
        return _Measured(math.inf, math.inf, 1.0, (0.0, 0.0))
    packs = _random_packs(_num_ids(model))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        packed = _logits(model, packs)
        alone = [_logits(model, [(example,)])[0] for pack in packs for example in pack]
        changed = [_logits(model, _with_others_changed(packs, keep, _num_ids(model))) for keep in (0, 1)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    kept_in = [changed[index % 2] for pack in packs for index in range(len(pack))]
    return _Measured(
        difference=max(_distance(one, other) for one, other in zip(packed, alone, strict=True)),
        influence=max(
            _distance(one, run[number]) for number, (one, run) in enumerate(zip(packed, kept_in, strict=True))
        ),
        scale=max(logits.abs().max().item() for logits in alone),
        tolerances=_TOLERANCES.get(next(model.parameters()).dtype, _HALF_TOLERANCES),
    )


def _random_packs(num_ids: int) -> list[Pack]:
    generator = torch.Generator().manual_seed(0)
    packs = []
    for lengths in _LENGTHS:
        texts = [torch.randint(num_ids, (length,), generator=generator).tolist() for length in lengths]
        packs.append(tuple(Example(ids, ids) for ids in texts))
    return packs


def _with_others_changed(packs: list[Pack], keep: int, num_ids: int) -> list[Pack]:
    """Returns the packs with other tokens in every second document."""

    def changed(example: Example) -> Example:
        ids = [(token + 1) % num_ids for token in example.input_ids]
        return Example(ids, ids)

    return [tuple(e if index % 2 == keep else changed(e) for index, e in enumerate(pack)) for pack in packs]


def _logits(model: nn.Module, packs: list[Pack]) -> list[Tensor]:
    """Returns the logits of every document, `[T, V]` each, from one pass over all packs."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in PackingCollator(pad_id=0)(packs).items() if name != "labels"}
    logits = model(**batch, use_cache=False).logits.float()
    lengths = [[len(example.input_ids) for example in pack] for pack in packs]
    return [part for row, sizes in zip(logits, lengths, strict=True) for part in row[: sum(sizes)].split(sizes)]


def _distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _num_ids(model: nn.Module) -> int:
    num_ids: int = _innermost(model).get_input_embeddings().num_embeddings  # type: ignore[operator]
    return num_ids


def _innermost(model: nn.Module) -> nn.Module:
    """Returns the causal language model inside of a PEFT model."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model
