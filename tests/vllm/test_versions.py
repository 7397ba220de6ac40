"""The vLLM that is installed against what `compat` and its neighbours take for granted, name by name."""

import inspect
from dataclasses import fields
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm
from vllm.forward_context import ForwardContext
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata, subclass_attention_backend
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from proxytune.vllm.compat import TESTED_VERSION

_FIELDS: list[tuple[Any, set[str]]] = [
    (BatchUpdate, {"removed", "added", "moved"}),
    (
        CommonAttentionMetadata,
        {
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "num_actual_tokens",
            "block_table_tensor",
            "slot_mapping",
            "positions",
            "_num_computed_tokens_cache",
            "_token_to_req_indices_cache",
        },
    ),
    (ForwardContext, {"attn_metadata", "slot_mapping"}),
]
_SIGNATURES: list[tuple[Any, list[str]]] = [
    (AttentionMetadataBuilder.build, ["self", "common_prefix_len", "common_attn_metadata", "fast_build"]),
    (AttentionMetadataBuilder.__init__, ["self", "kv_cache_spec", "layer_names", "vllm_config", "device"]),
    (subclass_attention_backend, ["name_prefix", "attention_backend_cls", "builder_cls"]),
    (QuantizationConfig.get_quant_method, ["self", "layer", "prefix"]),
    (AsyncLLM.generate, ["self", "prompt", "sampling_params", "request_id"]),
    (Attention.get_attn_backend, ["self"]),
    (LogitsProcessor.update_state, ["self", "batch_update"]),
]


def test_the_version_is_the_one_that_was_tested() -> None:
    """A newer vLLM than the equality tests ran with is named, not found out by wrong tokens."""
    assert vllm.__version__.startswith(TESTED_VERSION + "."), (
        f"vLLM {vllm.__version__} is installed and proxytune was tested with {TESTED_VERSION}: run tests/vllm and "
        "tests/serve with it, mend proxytune/vllm/compat.py, then change TESTED_VERSION and pyproject.toml."
    )


@pytest.mark.parametrize(("kind", "names"), _FIELDS, ids=lambda value: getattr(value, "__name__", ""))
def test_fields_are_where_they_were(kind: Any, names: set[str]) -> None:
    """A field that is read or replaced here exists."""
    missing = names - {field.name for field in fields(kind)}
    assert not missing, f"vLLM {vllm.__version__}: {kind.__name__} has no {sorted(missing)} any more"


@pytest.mark.parametrize(("function", "names"), _SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_functions_take_what_they_took(function: Any, names: list[str]) -> None:
    """The parameters that are passed, or that a subclass of ours takes over, in their order."""
    found = list(inspect.signature(function).parameters)
    assert found[: len(names)] == names, f"vLLM {vllm.__version__}: {function.__qualname__} takes {found}"


def test_requests_can_keep_out_of_the_prefix_cache() -> None:
    """Prompts per role rest on it: a request that reads no cached block, under a salt of its own."""
    from vllm import SamplingParams

    from proxytune.vllm.compat import tokens
    from proxytune.vllm.role_prompts import private

    params = SamplingParams()
    first, second = private(params), private(params)
    assert params.skip_reading_prefix_cache is True
    assert first != second
    assert tokens([1, 2], first)["cache_salt"] == first
