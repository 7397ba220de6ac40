"""LoRA adapters over the model to tune, also over quantised weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from neft.config import TrainingConfig
from neft.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from neft.rl.options import TuningOptions


def with_adapter(model: PreTrainedModel, config: TrainingConfig, rank: int) -> PeftModel:
    """Returns the model under a fresh adapter, which alone is trainable; the same seed gives the same first weights.

    Raises:
        InputError: the model has none of the modules to adapt.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if config.quantize is not None:
        # The Trainer turns checkpointing on, if wanted; here it would be turned on by default.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _keep_differentiable(model)
    lora = lora_config(config, rank, "CAUSAL_LM", use_rslora=config.use_rslora, use_dora=config.use_dora)
    # Loading may have drawn numbers, more or fewer with another version of the library.
    torch.manual_seed(config.seed if config.lora_seed is None else config.lora_seed)
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(
            f"the adapter does not fit the model (lora_targets {', '.join(config.lora_targets)}): {error}"
        ) from error


def lora_config(config: TrainingConfig | TuningOptions, rank: int, task_type: str, **options: Any) -> LoraConfig:
    """Returns the settings of a fresh adapter; `task_type` is PEFT's name."""
    from peft import LoraConfig

    targets = config.lora_targets
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
        task_type=task_type,
        **options,
    )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Keeps 4-bit layers on a CPU from changing to their inference format at the first evaluation.

    This format (bitsandbytes 0.50, processors with AVX512-BF16) stays, and passes no gradient on to the layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantization(config: TrainingConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what `from_pretrained` needs to quantise a model while loading it; nothing if it is not to be.

    Raises:
        InputError: bitsandbytes is missing.
    """
    if config.quantize is None:
        return {}
    return {"quantization_config": quantization_config(config.quantize, dtype)}


def quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """Returns the settings of 4bit (NF4, double quantisation, computing in `dtype`: QLoRA's) or 8bit (LLM.int8).

    Raises:
        InputError: bitsandbytes is missing.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise InputError("quantize needs bitsandbytes; pip install 'proxytune[bnb]'.")
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
