"""Lists of layers in a quantised checkpoint's config, which name `model.…`, under layers named `base.model.…`."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.modelopt import ModelOptFp8Config

from proxytune.vllm.compat import name_as_on_disk

KEPT, OTHER = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_GROUPS = {"group_0": {"targets": ["Linear"], "weights": _INT8, "input_activations": None}}
_CT = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": _GROUPS}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8": (Fp8Config, {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": [KEPT]}),
    "fp8-transformers": (
        Fp8Config,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": [KEPT]},
    ),
    "compressed-tensors": (CompressedTensorsConfig, {**_CT, "ignore": [KEPT]}),
    "compressed-tensors-pattern": (CompressedTensorsConfig, {**_CT, "ignore": [r"re:model\.layers\.0\..*"]}),
    "gptq-dynamic": (
        AutoGPTQConfig,
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 32,
            "desc_act": False,
            "sym": True,
            "dynamic": {r"-:model\.layers\.0\..*": {}},
        },
    ),
    "modelopt": (ModelOptFp8Config, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [KEPT]}),
    "modelopt-wildcard": (
        ModelOptFp8Config,
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.0*"]},
    ),
}


def is_kept(config: Any, prefix: str) -> bool:
    """Return whether a config leaves a linear layer unquantised."""
    layer = LinearBase.__new__(LinearBase)
    try:
        return isinstance(config.get_quant_method(layer, prefix), UnquantizedLinearMethod)
    except AssertionError:  # vLLM makes this method inside an engine only
        return False


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_roles_layers_are_found_in_the_lists_of_its_checkpoint(kind: str) -> None:
    """A layer that the config leaves out is left out under a role's name too, and others are quantised."""
    config_class, entry = CONFIGS[kind]
    config = config_class.from_config(entry)
    assert is_kept(config, KEPT)
    assert not is_kept(config, OTHER)
    name_as_on_disk(config, "base")
    assert isinstance(config, config_class)
    assert is_kept(config, f"base.{KEPT}")
    assert not is_kept(config, f"base.{OTHER}")
