"""Proof, by a few tokens, that an expert's adapter and its anti can share one model's weights."""

from typing import Any

import torch
from torch import Tensor

from proxytune.errors import ProxyTuneError, RoleError
from proxytune.library_errors import reason_of

_NUM_TOKENS = 4
_MERGE = "merge it into a model of its own (merge_and_unload, save_pretrained) and pass that."


def probe_logits(model: Any) -> Tensor:
    """Return logits `[1, T, V]` of a model for a few tokens, to compare with those after an adapter came in."""
    return _logits(model, _tokens(model)[:1])


def require_shareable(peft_model: Any, adapter_name: str, name: str, anti_logits: Tensor | None) -> None:
    """Raise unless an adapter's model gives the same by every way that decoding calls it.

    Args:
        peft_model: The PeftModel.
        adapter_name: In it.
        name: Of the role.
        anti_logits: `probe_logits` of the model below before the adapter came in; None where no other role runs it.

    Raises:
        RoleError: The anti's logits have changed; the model inside gives others than the PeftModel; or a row's depend
            on the other rows of its batch.
    """
    model = peft_model.get_base_model()
    ids = _tokens(model)
    try:
        with peft_model.disable_adapter():
            below = _logits(model, ids[:1])
        peft_model.set_adapter(adapter_name)
        expected = _logits(peft_model, ids[:1])
        alone, among = _logits(model, ids[:1]), _logits(model, ids)[:1]
    except (ProxyTuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RoleError(f"{name} is an adapter that does not run ({reason_of(error)}): {_MERGE}") from error
    if anti_logits is not None and not torch.equal(below, anti_logits):
        raise RoleError(f"{name} is an adapter that changes its anti's own weights as it is loaded: {_MERGE}")
    if not _is_close(alone, expected):
        raise RoleError(f"{name} is an adapter that acts from outside the model it adapts: {_MERGE}")
    if not _is_close(among, expected):
        raise RoleError(f"{name} is an adapter that lets the rows of a batch change each other: {_MERGE}")


def _tokens(model: Any) -> Tensor:
    """Return two rows of ids that every vocabulary has."""
    ids = torch.arange(2 * _NUM_TOKENS, device=model.device).reshape(2, _NUM_TOKENS)
    return ids % int(model.config.get_text_config(decoder=True).vocab_size)


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits
    return logits.float()


def _is_close(logits: Tensor, expected: Tensor) -> bool:
    """Return whether logits differ by no more than rounding, which a larger batch changes."""
    scale = float(expected.abs().max().clamp(min=1.0))
    return float((logits - expected).abs().max()) <= 2e-2 * scale
