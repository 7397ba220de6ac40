"""Proof, by a few tokens, that an expert's adapter and its anti can share one model's weights."""

from typing import Any

import torch
from torch import Tensor

from proxytune.errors import ProxyTuneError, RoleError
from proxytune.library_errors import reason_of

_NUM_TOKENS = 4
_MERGE = "merge it into a model of its own (merge_and_unload, save_pretrained) and pass that as the expert."


class AdapterProbe:
    """Logits of an anti before an adapter comes in, to compare with those afterwards."""

    def __init__(self, anti: Any) -> None:
        """Run the anti, one forward of four tokens."""
        self._ids = _tokens(anti)
        self._anti_logits = _logits(anti, self._ids[:1])

    @torch.no_grad()
    def require_shareable(self, peft_model: Any, adapter_name: str, name: str, *, shares_anti: bool) -> None:
        """Raise unless the adapter's model gives the same by every way that decoding calls it.

        Args:
            peft_model: The PeftModel around the anti, or around a copy of it.
            adapter_name: In it.
            name: Of the expert.
            shares_anti: Whether the anti runs in the same model with adapters switched off.

        Raises:
            RoleError: The anti's logits have changed; the model inside gives others than the PeftModel; or a row's
                depend on the other rows of its batch.
        """
        model = peft_model.get_base_model()
        try:
            if shares_anti:
                with peft_model.disable_adapter():
                    anti_logits = _logits(model, self._ids[:1])
            peft_model.set_adapter(adapter_name)
            expected = _logits(peft_model, self._ids[:1])
            alone, among = _logits(model, self._ids[:1]), _logits(model, self._ids)[:1]
        except (ProxyTuneError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RoleError(f"{name} is an adapter that does not run ({reason_of(error)}): {_MERGE}") from error
        if shares_anti and not torch.equal(anti_logits, self._anti_logits):
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


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Return whether logits differ by no more than rounding, which a larger batch changes."""
    scale = float(expected.abs().max().clamp(min=1.0))
    return float((found - expected).abs().max()) <= 2e-2 * scale
