"""Everything that may differ between vLLM versions, see `TESTED_VERSION`."""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor
from vllm.compilation.backends import set_model_tag
from vllm.config import CUDAGraphMode, ModelConfig, VllmConfig, replace
from vllm.distributed import (
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
    tensor_model_parallel_gather,
)
from vllm.forward_context import get_forward_context
from vllm.inputs import tokens_input
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata, subclass_attention_backend

from proxytune.errors import DependencyError, ProxyTuneWarning, RuntimeUnsupportedError
from proxytune.vllm.alpha import AlphaRows, RoleInput
from proxytune.vllm.plan import Plan, RolePlan
from proxytune.vllm.speculation import METHOD

TESTED_VERSION = "0.32"  # with which tokens were compared; tests/vllm/test_versions.py names what moved in another

# Of the plugin, as pyproject.toml has them.
_ENTRY_POINT_GROUP, _ENTRY_POINT = "vllm.general_plugins", "proxytune"
_RUNNER_V2 = "VLLM_USE_V2_MODEL_RUNNER"


def require_plugin() -> None:
    """Raise DependencyError unless vLLM's processes will find the composite."""
    import vllm.envs as envs
    from vllm import __version__ as version

    if not version.startswith(f"{TESTED_VERSION}."):
        warnings.warn(
            f"vLLM {version} is installed, and proxytune was tested with {TESTED_VERSION}: compare a few answers with "
            f"runtime='hf', or install vLLM {TESTED_VERSION}.",
            ProxyTuneWarning,
            stacklevel=2,
        )
    names = {point.name for point in entry_points(group=_ENTRY_POINT_GROUP)}
    if _ENTRY_POINT not in names:
        raise DependencyError("vLLM does not see proxytune's plugin: install proxytune again (pip install -e .).")
    if envs.VLLM_PLUGINS is not None and _ENTRY_POINT not in envs.VLLM_PLUGINS:
        raise DependencyError(f"VLLM_PLUGINS={','.join(envs.VLLM_PLUGINS)!r} leaves out {_ENTRY_POINT!r}: add it.")


def require_supported_engine(vllm_config: Any) -> None:
    """Raise RuntimeUnsupportedError for engine settings under which a request's α would not reach the logits."""
    if vllm_config.use_v2_model_runner:
        raise RuntimeUnsupportedError(
            f"the composite runs on vLLM's model runner V1, and {_RUNNER_V2} is set to 1, or an option needs V2: "
            f"set {_RUNNER_V2}=0 and leave that option out, or use runtime='hf'."
        )
    _require_supported_speculation(vllm_config)
    if vllm_config.lora_config is not None:
        raise RuntimeUnsupportedError("enable_lora is not supported with a composite: pass the adapter as the expert.")


def _require_supported_speculation(vllm_config: Any) -> None:
    speculation = vllm_config.speculative_config
    if speculation is None:
        return
    if speculation.method != METHOD:
        raise RuntimeUnsupportedError(
            f"speculative_config names method {speculation.method!r}, and a composite takes {METHOD!r}: "
            "change it, or leave it out."
        )
    if vllm_config.model_config.logits_processors:
        raise RuntimeUnsupportedError(
            "vLLM takes no logits processors beside speculative_config, and α per request is one: leave either out."
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise RuntimeUnsupportedError(
            "speculative_config and pipeline_parallel_size above 1 are not supported together: leave either out."
        )


def require_role_prompts(vllm_config: Any) -> None:
    """Raise RuntimeUnsupportedError for engine settings under which all roles must read the same prompt."""
    reason = None
    mode = vllm_config.compilation_config.cudagraph_mode
    if vllm_config.speculative_config is not None:
        reason = (
            "speculative_config is set, beside which vLLM takes no logits processor to tell them apart: leave it out"
        )
    elif records_graphs(vllm_config) and mode.has_full_cudagraphs():
        reason = f"CUDA graphs of mode {mode.name} hold one prompt for all: set cudagraph_mode PIECEWISE"
    elif vllm_config.parallel_config.decode_context_parallel_size > 1:
        reason = "decode_context_parallel_size spreads one prompt's KV cache for all: leave it out"
    if reason is not None:
        raise RuntimeUnsupportedError(f"the roles read different prompts, and {reason}, or take runtime='hf'.")


def records_graphs(vllm_config: Any) -> bool:
    """Return whether an engine replays CUDA graphs, full ones or pieces."""
    mode = vllm_config.compilation_config.cudagraph_mode
    return not current_platform.is_cpu() and mode is not None and mode is not CUDAGraphMode.NONE


def device_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return engine arguments, given the user's, that `require_supported_engine` accepts on this device."""
    return {} if current_platform.is_cpu() else accelerator_settings(options, is_cuda=current_platform.is_cuda())


def accelerator_settings(options: Mapping[str, Any], *, is_cuda: bool) -> dict[str, Any]:
    """Return what a GPU needs: piecewise graphs, no scheduling ahead in a pipeline (runner V1 has no such).

    Full graphs would hold one prompt for all roles. On CUDA also an attention backend that takes requests in any order
    of their lengths, as a role may read less of one than others do. Settings of the user stay.
    """
    settings: dict[str, Any] = {}
    compilation = options.get("compilation_config") or {}
    if isinstance(compilation, Mapping):
        settings["compilation_config"] = {"cudagraph_mode": CUDAGraphMode.PIECEWISE.name, **compilation}
    if options.get("pipeline_parallel_size", 1) > 1 and options.get("async_scheduling") is None:
        settings["async_scheduling"] = False
    if is_cuda and not options.get("attention_backend") and not options.get("attention_config"):
        settings["attention_backend"] = "FLASH_ATTN"
    return settings


def choose_runner() -> None:
    """Have vLLM take its model runner V1 in this process and those it starts; the caller's own choice stays.

    vLLM knows no engine argument for it, only the environment, which is therefore set for good: its processes read it
    whenever they ask which runner they are.
    """
    if not current_platform.is_cpu():
        os.environ.setdefault(_RUNNER_V2, "0")


def new_role(role: RolePlan, vllm_config: Any, fingerprint: str = "") -> Any:
    """Return a role's vLLM model, not yet loaded, whose layers are named `<role>.…` in the shared engine.

    `fingerprint` tells it from a model of the same config that computes something else.
    """
    composite: Any = vllm_config.model_config
    model_config = ModelConfig(
        model=role.model,
        revision=role.revision,
        dtype=composite.dtype,
        max_model_len=composite.max_model_len,
        seed=composite.seed,
        enforce_eager=composite.enforce_eager,
        skip_tokenizer_init=True,
    )
    model_config.verify_with_parallel_config(vllm_config.parallel_config)
    model_config.maybe_untie_word_embeddings()
    quant_config = VllmConfig.get_quantization_config(model_config, vllm_config.load_config)
    if quant_config is not None:
        name_as_on_disk(quant_config, role.name)
    # Else vLLM would settle the engine's shared settings once more, for this model alone.
    model_config.is_submodel_config = True
    role_config = replace(
        vllm_config,
        model_config=model_config,
        quant_config=quant_config,
        # The key of vLLM's compile cache knows no roles; two of one architecture would share an artefact.
        additional_config={**(vllm_config.additional_config or {}), "proxytune_role": role.name + fingerprint},
    )
    with set_model_tag(f"proxytune_{role.name}"):
        return initialize_model(role_config, prefix=role.name)


def name_as_on_disk(quant_config: Any, role_name: str) -> None:
    """Have a quantisation's lists of layers, which a checkpoint names `model.…`, apply to `<role>.model.…`."""

    class RoleQuantConfig(type(quant_config)):  # type: ignore[misc]
        def get_quant_method(self, layer: Any, prefix: str) -> Any:
            return super().get_quant_method(layer, prefix.removeprefix(f"{role_name}."))

    quant_config.__class__ = RoleQuantConfig


def weight_sources(plan: Plan) -> list[Any]:
    """Return where the weights of all models but the base are; the loader reads the base's by itself."""
    return [
        DefaultModelLoader.Source(role.model, role.revision, prefix=weight_prefix(role.name))
        for role in plan.models[1:]
    ]


def weight_prefix(name: str) -> str:
    """Return what marks a role's weights on their way from the loader; no checkpoint uses it."""
    return f"__{name}__."


def has_equal_shards(heads: Sequence[Any]) -> bool:
    """Return whether LM heads are spread over several ranks in shards of the same ids."""
    return heads[0].tp_size > 1 and len({head.num_embeddings_per_partition for head in heads}) == 1


def gather_logits(shard: Tensor) -> Tensor | None:
    """Return logits over the padded vocabulary from each rank's shard; None on a rank that does not sample."""
    gather = tensor_model_parallel_all_gather if current_platform.use_all_gather() else tensor_model_parallel_gather
    logits: Tensor | None = gather(shard)
    return logits


def on_any_rank(flags: Tensor | None) -> Tensor | None:
    """Return where any of the ranks that hold a shard has a flag."""
    return None if flags is None else tensor_model_parallel_all_reduce(flags.float()) > 0


def is_dummy_run() -> bool:
    """Return whether the forward pass that runs has no requests."""
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, list):
        raise RuntimeUnsupportedError("vLLM's micro-batches are not supported with a composite: leave enable_dbo off.")
    return not metadata


def read_role_prompts(model: Any, name: str, role_index: int) -> None:
    """Have the attention layers of a role's model attend by that role's prompts, which may not be the step's tokens.

    The layers get a backend of their own class, hence a metadata builder of their own, by which vLLM keeps them apart.
    """
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.attn_backend = _role_backend(layer.attn_backend, name, role_index)


@cache
def _role_backend(backend: Any, name: str, role_index: int) -> Any:
    class RoleMetadataBuilder(backend.get_builder_cls()):  # type: ignore[misc]
        supports_update_block_table = False  # another role's metadata is not this one's with other blocks

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            rows = AlphaRows.of(self.vllm_config)
            if rows is not None:
                common_attn_metadata = _of_role(rows, role_index, common_attn_metadata, self.kv_cache_spec.block_size)
            return super().build(common_prefix_len, common_attn_metadata, fast_build)

    return subclass_attention_backend(f"Role_{name}_", backend, RoleMetadataBuilder)


def _of_role(
    rows: AlphaRows, role_index: int, metadata: CommonAttentionMetadata, block_size: int
) -> CommonAttentionMetadata:
    """Return a step's metadata as a role has it, unchanged where it reads the step as it is."""
    rows.begin_step(metadata.query_start_loc)
    rows.role_inputs.pop(role_index, None)
    step = rows.role_step(
        role_index, metadata.query_start_loc_cpu, metadata.seq_lens_cpu_upper_bound, metadata.num_actual_tokens
    )
    if step is None:
        return metadata
    device_step = step.to(metadata.seq_lens.device)
    slots = device_step.slots(metadata.block_table_tensor, block_size).to(metadata.slot_mapping.dtype)
    rows.role_inputs[role_index] = RoleInput(device_step, slots)
    # The longest query and sequence and the number of tokens are upper bounds, and remain such.
    return metadata.replace(
        query_start_loc=device_step.starts,
        query_start_loc_cpu=step.starts,
        seq_lens=device_step.lengths,
        seq_lens_cpu_upper_bound=step.lengths,
        positions=device_step.positions,
        slot_mapping=slots,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def set_slots(names: Sequence[str], slots: Tensor) -> None:
    """Have the attention layers of these roles write the KV of the running step's tokens to `slots` `[T]`."""
    starts = tuple(f"{name}." for name in names)
    mapping: Any = get_forward_context().slot_mapping
    for layer in mapping:
        if layer.startswith(starts):
            mapping[layer] = slots


def was_asked_to_stop(rest: Any) -> bool:
    """Return whether a signal ended the server; `rest` is what `build_and_serve` leaves to await.

    The rest is the server's shutdown after a signal, and a dummy after the server ended by itself. The engine's flags
    tell nothing: they are set by its shutdown too.
    """
    return str(rest.__name__) == "shutdown"


def tokens(token_ids: Sequence[int], cache_salt: str | None = None) -> Any:
    """Return a prompt of token ids as the engine takes it."""
    return tokens_input(list(token_ids), cache_salt=cache_salt)
