"""The pair pass: an expert that is a LoRA adapter over its anti runs with it in one forward, weights read once."""

import copy
from typing import Any

import torch
from torch import Tensor

from proxytune.errors import RuntimeUnsupportedError
from proxytune.hf.adapted_linear import AdaptedLinear, RowChoice, Rows

# Config fields of models that scale or cap their logits, so that a head's product is not yet the logits.
_LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)


class PairPass:
    """A causal LM for 2B rows: the first half are the expert's, the second the anti's.

    `model` shares every weight with the peft model and leaves that as it was: only the modules on the way to an adapted
    layer are copied, shells without weights. Make it after the model is on its device.

    Attributes:
        model: The plain causal LM to call.
        head_is_shared: Expert − anti is one product of the head with the difference of the hidden states.
    """

    def __init__(self, peft_model: Any, adapter_name: str) -> None:
        """Build the shells.

        Raises:
            RuntimeUnsupportedError: `pair_unsupported_reason` has a reason.
        """
        reason = pair_unsupported_reason(peft_model, adapter_name)
        if reason is not None:
            raise RuntimeUnsupportedError(
                f"no pair pass for adapter {adapter_name!r}: {reason}; run expert and anti in two passes."
            )
        self._choice = RowChoice()
        self.model = _shell(peft_model.get_base_model(), adapter_name, self._choice)
        self._head: Any = self.model.get_output_embeddings()
        self._is_linear = self._head is not None and not _changes_logits(
            self.model.config.get_text_config(decoder=True)
        )
        is_plain = isinstance(self._head, torch.nn.Linear) and self._head.bias is None
        self.head_is_shared: bool = self._is_linear and is_plain

    def rows(self, which: Rows) -> None:
        """Choose what the next forwards apply the adapter to: every row, none, or the first half."""
        self._choice.which = which

    def difference(self, hidden: Tensor) -> Tensor | None:
        """Return expert − anti logits `[B, T, V]`, float32, for the backbone's last hidden states `[2B, T, D]`.

        One head product on h⁺ − h⁻ where the head is untouched, two where it has a bias or an adapter; None where
        the model scales or caps its logits. Expects `rows("pair")`.
        """
        if not self._is_linear:
            return None
        half = hidden.shape[0] // 2
        if self.head_is_shared:
            # Subtracted in float32, so that a bf16 head still sees a difference rounded once.
            apart = hidden[:half].float() - hidden[half:].float()
            product: Tensor = self._head(apart.to(hidden.dtype))
            return product.float()
        logits: Tensor = self._head(hidden).float()
        return logits[:half] - logits[half:]


def pair_unsupported_reason(peft_model: Any, adapter_name: str) -> str | None:
    """Return the reason why this adapter needs two passes, None when one pass does."""
    config = getattr(peft_model, "peft_config", {}).get(adapter_name)
    if config is None:
        return f"the model holds no adapter of the name {adapter_name!r}"
    if config.peft_type != "LORA":
        return f"it is a {getattr(config.peft_type, 'value', config.peft_type)} adapter, not LoRA"
    if config.bias != "none":
        return f"it trained biases (bias={config.bias!r})"
    return _modules_unsupported_reason(peft_model.get_base_model(), adapter_name)


def _modules_unsupported_reason(model: Any, adapter_name: str) -> str | None:
    """Return the first module's reason, None when all of them can be sliced."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return f"{name} is trained whole (modules_to_save or trainable tokens)"
        if hasattr(module, "_hf_hook"):
            return f"{name or 'the model'} is moved between devices by hooks"
        reason = _layer_unsupported_reason(module, adapter_name) if isinstance(module, BaseTunerLayer) else None
        if reason is not None:
            return f"{name} {reason}"
    return None


def _layer_unsupported_reason(layer: Any, adapter_name: str) -> str | None:
    """Return why one of peft's layers cannot be sliced by rows, None when it can."""
    from peft.tuners.lora import Linear, LoraLayer

    if not isinstance(layer, LoraLayer):
        return "carries an adapter that is not LoRA"
    if layer.merged:
        return "has an adapter merged into its weights"
    if adapter_name in layer.lora_variant:
        return f"uses the variant {type(layer.lora_variant[adapter_name]).__name__}, which is no plain low-rank sum"
    if adapter_name in layer.lora_embedding_A:
        return "is an adapted embedding"
    if adapter_name not in layer.lora_A:
        return None
    # Linear serves nn.Linear and GPT-2's Conv1D; the quantised ones are classes of their own beside it.
    if not isinstance(layer, Linear) and type(layer).__name__ not in ("Linear4bit", "Linear8bitLt"):
        return f"is an adapted {type(layer).__name__}, not a linear layer"
    if layer.lora_B[adapter_name].bias is not None:
        return "has a LoRA bias"
    return None


def _changes_logits(config: Any) -> bool:
    """Return whether the model does more than a head's product to make its logits."""
    # 1.0 is the neutral value of every scale, and no model caps at 1.
    return any(getattr(config, name, None) not in (None, 1.0) for name in _LOGIT_CHANGES)


def _shell(model: Any, adapter_name: str, choice: RowChoice) -> Any:
    """Return a copy of `model` with peft's layers replaced, that shares every tensor and every other module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    inside = tuple(f"{name}." for name in layers)
    parts = {name: module for name, module in model.named_modules() if not f"{name}.".startswith(inside)}
    ways = {""} | {name[:end] for name in layers for end, letter in enumerate(name) if letter == "."}
    shared = {name: module for name, module in parts.items() if name not in ways}
    memo: dict[int, Any] = {id(module): module for module in shared.values()}
    memo |= {id(layer): _sliced(layer, adapter_name, choice) for layer in layers.values()}
    tensors = [*model.parameters(), *model.buffers(), model.config]
    memo |= {id(tensor): tensor for tensor in tensors}
    return copy.deepcopy(model, memo)


def _sliced(layer: Any, adapter_name: str, choice: RowChoice) -> Any:
    """Return peft's layer as ours, or its base layer where this adapter is not."""
    base = layer.get_base_layer()
    if adapter_name not in layer.lora_A:
        return base
    return AdaptedLinear(
        base,
        layer.lora_A[adapter_name].weight,
        layer.lora_B[adapter_name].weight,
        scaling=float(layer.scaling[adapter_name]),
        choice=choice,
    )
