"""Everything that may differ between vLLM versions; written for and tested with 0.32."""

from importlib.metadata import entry_points
from typing import Any

from torch import Tensor
from vllm.compilation.backends import set_model_tag
from vllm.config import CUDAGraphMode, ModelConfig, VllmConfig, replace
from vllm.forward_context import get_forward_context
from vllm.inputs import tokens_input
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform

from proxytune.errors import DependencyError, RuntimeUnsupportedError
from proxytune.vllm.plan import Plan, RolePlan
from proxytune.vllm.plugin import ENTRY_POINT, ENTRY_POINT_GROUP


def require_plugin() -> None:
    """Raise DependencyError unless vLLM's processes will find the composite."""
    import vllm.envs as envs

    names = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    if ENTRY_POINT not in names:
        raise DependencyError("vLLM does not see proxytune's plugin: install proxytune again (pip install -e .).")
    if envs.VLLM_PLUGINS is not None and ENTRY_POINT not in envs.VLLM_PLUGINS:
        raise DependencyError(f"VLLM_PLUGINS={','.join(envs.VLLM_PLUGINS)!r} leaves out {ENTRY_POINT!r}: add it.")


def require_supported_engine(vllm_config: Any) -> None:
    """Raise RuntimeUnsupportedError for engine settings under which a request's α would not reach the logits."""
    if vllm_config.use_v2_model_runner:
        raise RuntimeUnsupportedError(
            "the composite runs on vLLM's model runner V1: set VLLM_USE_V2_MODEL_RUNNER=0, or use runtime='hf'."
        )
    mode = vllm_config.compilation_config.cudagraph_mode
    if not current_platform.is_cpu() and mode is not None and mode.has_full_cudagraphs():
        raise RuntimeUnsupportedError(
            f"CUDA graphs of mode {mode.name} would keep the α they were captured with: set "
            'compilation_config={"cudagraph_mode": "PIECEWISE"}, or use runtime="hf".'
        )
    if vllm_config.speculative_config is not None:
        raise RuntimeUnsupportedError("speculative_config is not supported with a composite yet: leave it out.")
    if vllm_config.lora_config is not None:
        raise RuntimeUnsupportedError("enable_lora is not supported with a composite: pass the adapter as the expert.")


def piecewise_graphs() -> dict[str, Any]:
    """Return engine arguments for CUDA that `require_supported_engine` accepts."""
    return {} if current_platform.is_cpu() else {"compilation_config": {"cudagraph_mode": CUDAGraphMode.PIECEWISE.name}}


def new_role(role: RolePlan, vllm_config: Any) -> Any:
    """Return a role's vLLM model, not yet loaded, whose layers are named `<role>.…` in the shared engine."""
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
    # Else vLLM would settle the engine's shared settings once more, for this model alone.
    model_config.is_submodel_config = True
    own = replace(
        vllm_config,
        model_config=model_config,
        quant_config=quant_config,
        # The key of vLLM's compile cache knows no roles; two of one architecture would share an artefact.
        additional_config={**(vllm_config.additional_config or {}), "proxytune_role": role.name},
    )
    with set_model_tag(f"proxytune_{role.name}"):
        return initialize_model(own, prefix=role.name)


def weight_sources(plan: Plan) -> list[Any]:
    """Return where the weights of all roles but the base are; the loader reads the base's by itself."""
    return [
        DefaultModelLoader.Source(role.model, role.revision, prefix=weight_prefix(role.name)) for role in plan.roles[1:]
    ]


def weight_prefix(name: str) -> str:
    """Return what marks a role's weights on their way from the loader; no checkpoint uses it."""
    return f"__{name}__."


def query_starts() -> Tensor | None:
    """Return the first token of each request in the running batch and the number of tokens, `[B + 1]`.

    None in a dummy run.
    """
    metadata = get_forward_context().attn_metadata
    if not metadata:
        return None
    if not isinstance(metadata, dict):
        raise RuntimeUnsupportedError("vLLM's micro-batches are not supported with a composite: leave enable_dbo off.")
    starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
    if starts is None:
        raise RuntimeUnsupportedError(
            "this attention backend does not tell where requests begin, so α cannot be per request: "
            "set attention_backend='FLASH_ATTN', or use runtime='hf'."
        )
    return starts  # type: ignore[no-any-return]


def tokens(token_ids: tuple[int, ...]) -> Any:
    """Return a prompt of token ids as the engine takes it."""
    return tokens_input(list(token_ids))
