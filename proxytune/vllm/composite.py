"""A composite as the vLLM runtime knows it before its engine starts: configs of the roles, no weights."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from proxytune.adapters import load_adapter
from proxytune.checkpoints import load_model, read_config
from proxytune.errors import ProxyTuneWarning, RoleError, RuntimeUnsupportedError
from proxytune.roles import Role, Term, named_roles, role_of
from proxytune.vllm.adapter import is_asked_to_merge, merge_reason
from proxytune.vllm.marks import Marks
from proxytune.vllm.plan import Plan, RolePlan, check_alphas, require_splittable, require_supported
from proxytune.vllm.speculation import OPTION as SPECULATION

_HF = 'take runtime="hf" for this.'


@dataclass(frozen=True)
class VllmRole:
    """One role: `plan` says what the engine loads, `config` what it is; `model` stands in for its generation config."""

    name: str
    plan: RolePlan
    config: Any
    prompt_format: str
    max_context: int | None
    model: Any

    @property
    def logits_width(self) -> int:
        """Width of its logits, padding included."""
        return int(self.config.vocab_size)


@dataclass
class VllmComposite:
    """Roles, pairs and config under the names that the transformers composite has for them.

    Attributes:
        config: The `ProxyTunedConfig`; its sizes are filled in here.
        roles: Every distinct role under its prompt format, base first.
        pair_roles: For each pair the indices of its expert and its anti in `roles`, None for an anti that is none.
        dtype: Of all roles.
        engine_options: vLLM's `EngineArgs` beyond those that make the composite.
        generation_config: Ids that begin and end a text; set by whoever merges the roles'.
        merged: Folder of adapters merged into their antis; None when no expert is one.
    """

    config: Any
    roles: list[VllmRole]
    pair_roles: list[tuple[int, int | None]]
    dtype: torch.dtype
    engine_options: Mapping[str, Any]
    merged: Any = None
    generation_config: Any = field(default_factory=GenerationConfig)

    @property
    def base(self) -> Any:
        """The base's stand-in."""
        return self.roles[0].model

    @property
    def is_speculative(self) -> bool:
        """True if a draft model runs ahead of it."""
        return self.engine_options.get(SPECULATION) is not None

    def marks(self) -> Marks | None:
        """Return the marks of broken logits; None where drafts are verified, whose logits have one width with these."""
        names = tuple(role.name for role in self.plan().roles)
        return None if self.is_speculative else Marks(self.roles[0].logits_width, names)

    def plan(self) -> Plan:
        """Return what the engine loads, in the order of `roles`."""
        return Plan(
            roles=tuple(role.plan for role in self.roles),
            pairs=tuple(self.pair_roles),
            alphas=check_alphas(self.config.alphas),
            vocab_size=self.config.vocab_size,
            rule=self.config.rule,
        )


def unsupported_reason(base: Role, pairs: Sequence[tuple[Term, Term]]) -> str | None:
    """Return why these roles, as they were given, cannot run in vLLM; None if they can."""
    reasons = (
        _role_unsupported_reason(name.partition("_")[0], role) for name, role in named_roles(base, pairs).items()
    )
    return next((reason for reason in reasons if reason is not None), None)


def models_unsupported_reason(
    base: Role, pairs: Sequence[tuple[Term, Term]], engine_options: Mapping[str, Any] | None
) -> str | None:
    """Return why vLLM cannot run these roles, as they were given or by their configs; None if it can.

    Raises:
        RoleError: A role is missing.
    """
    reason = unsupported_reason(base, pairs)
    if reason is not None:
        return reason
    given = {name: role for name, role in named_roles(base, pairs).items() if not role.is_adapter}
    try:
        roles = [_read(name, role, "raw") for name, role in given.items()]
        _require_one_engine(list(given.values()), roles, engine_options or {})
    except RuntimeUnsupportedError as error:
        return str(error)
    return None


def _require_one_engine(given: Sequence[Role], roles: Sequence[VllmRole], options: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of all roles; raise RuntimeUnsupportedError where one engine cannot hold them."""
    for role in roles:
        require_splittable(role.config, role.name, int(options.get("tensor_parallel_size") or 1))
    return _shared_dtype(given, roles)


def _role_unsupported_reason(name: str, role: Role) -> str | None:
    if role.is_loaded:
        return f"{name} is a loaded model, and vLLM loads models itself: pass its folder or hub id, or {_HF}"
    if role.gguf_file is not None:
        return f"{name} is the GGUF file {role.gguf_file!r}, and its roles share one kind of weights here: {_HF}"
    if role.device_map is not None:
        return f"device_map={role.device_map!r} of {name}: vLLM places models itself; leave it out, or {_HF}"
    if role.quantization is not None:
        return (
            f"quantization={role.quantization!r} of {name}: vLLM runs weights that are quantised on disk; "
            f"leave it out, or {_HF}"
        )
    if role.model_kwargs:
        return f"model_kwargs of {name} ({', '.join(role.model_kwargs)}) are transformers' own: {_HF}"
    if role.is_adapter and name != "expert":
        return f"{name} is an adapter, and only an expert may be one here: merge it first, or {_HF}"
    return None


def new_composite(
    base: Role, pairs: Sequence[tuple[Term, Term]], config: Any, engine_options: Mapping[str, Any] | None
) -> VllmComposite:
    """Return the composite of these roles, every one of them checked; an adapter shares its anti, or is merged on disk.

    Raises:
        RuntimeUnsupportedError: vLLM cannot run them; the text names the runtime that can.
        RoleError: A role is missing.
    """
    reason = unsupported_reason(base, pairs)
    if reason is not None:
        raise RuntimeUnsupportedError(reason)
    options = dict(engine_options or {})
    merged = _Merged()
    roles: list[VllmRole] = []
    pair_roles: list[tuple[int, int | None]] = []
    _role_index(roles, "base", base, config.base_prompt)
    for number, (expert, anti) in enumerate(pairs):
        suffix = "" if len(pairs) == 1 else f"_{number + 1}"
        formats = config.prompt_formats(number)
        expert_role, anti_role = role_of(expert, base) or base, role_of(anti, base)
        over = None
        if expert_role.is_adapter:
            if anti_role is None:
                raise RoleError(
                    f"expert{suffix} is an adapter without an anti: pass the model that it adapts as the anti."
                )
            name = f"expert{suffix}"
            seen = _index_of(roles, anti_role, formats[1])
            over = _read(f"anti{suffix}", anti_role, formats[1]) if seen is None else roles[seen]
            if _is_merged(expert_role, name, anti_role, over, options, reads_other_prompt=formats[0] != formats[1]):
                expert_role, over = merged.add(expert_role, anti_role, name), None
        expert_index = _role_index(roles, f"expert{suffix}", expert_role, formats[0], over)
        anti_index = None
        if anti_role is not None:
            anti_index = _role_index(roles, f"anti{suffix}", anti_role, formats[1])
        pair_roles.append((expert_index, anti_index))
    dtype = _require_one_engine(list(named_roles(base, pairs).values()), roles, options)
    if (limit := options.get("max_model_len")) is not None and limit > 0:
        roles = [replace(role, max_context=min(limit, role.max_context or limit)) for role in roles]
    contexts = [role.max_context for role in roles if role.max_context is not None]
    # The engine has one length for all: that of the longest prompt and the answer.
    roles = [replace(role, max_context=min(contexts, default=None)) for role in roles]
    config.vocab_size = min([role.logits_width for role in roles] + ([config.vocab_size] if config.vocab_size else []))
    config.max_position_embeddings = min(contexts, default=None)
    config.num_hidden_layers = sum(role.config.num_hidden_layers for role in roles)
    config.hidden_size = roles[0].config.hidden_size
    return VllmComposite(config, roles, pair_roles, dtype, options, merged.folder)


def _role_index(roles: list[VllmRole], name: str, role: Role, prompt_format: str, over: VllmRole | None = None) -> int:
    """Return the index of a role among those seen so far, adding it when it is new; `over` is the anti it adapts."""
    seen = _index_of(roles, role, prompt_format, over)
    if seen is not None:
        return seen
    if over is not None:
        roles.append(_adapting(over, name, role, prompt_format))
    else:
        twin = next((other.name for other in roles if _index_of([other], role, other.prompt_format) is not None), None)
        if twin is not None:
            warnings.warn(
                f"{name} is the model of {twin} and reads another prompt, so vLLM loads it twice: give both one "
                f"format to save the memory, or {_HF}",
                ProxyTuneWarning,
                stacklevel=4,
            )
        roles.append(_read(name, role, prompt_format))
    return len(roles) - 1


def _index_of(roles: Sequence[VllmRole], role: Role, prompt_format: str, over: VllmRole | None = None) -> int | None:
    """Return the index of the same model that reads the same prompt."""
    expected = (_source(role), role.revision, None if over is None else over.plan.name, prompt_format)
    for index, seen in enumerate(roles):
        if (seen.plan.model, seen.plan.revision, seen.plan.adapter_of, seen.prompt_format) == expected:
            return index
    return None


def _source(role: Role) -> str:
    return str(Path(str(role.source)).resolve()) if Path(str(role.source)).is_dir() else str(role.source)


def _read(name: str, role: Role, prompt_format: str) -> VllmRole:
    """Return a role that is a model of its own, from its config."""
    source = _source(role)
    config = read_config(role, name).get_text_config(decoder=True)
    require_supported(config, name)
    generation_config = _generation_config(source, role.revision, config)
    plan = RolePlan(name=name, model=source, revision=role.revision)
    stand_in = SimpleNamespace(generation_config=generation_config)
    return VllmRole(name, plan, config, prompt_format, getattr(config, "max_position_embeddings", None), stand_in)


def _adapting(anti: VllmRole, name: str, role: Role, prompt_format: str) -> VllmRole:
    """Return an expert that is its anti but for an adapter."""
    plan = RolePlan(name=name, model=_source(role), revision=role.revision, adapter_of=anti.plan.name)
    return replace(anti, name=name, plan=plan, prompt_format=prompt_format)


def _generation_config(source: str, revision: str | None, config: Any) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(config)


def _shared_dtype(given: Sequence[Role], roles: Sequence[VllmRole]) -> torch.dtype:
    """Return the one dtype of all roles: vLLM keeps their hidden states and KV caches in the same."""
    asked = {_as_dtype(role.dtype) for role in given if role.dtype not in (None, "auto")}
    stored = {_as_dtype(getattr(role.config, "dtype", None) or torch.float32) for role in roles}
    dtypes = asked or stored
    if len(dtypes) > 1 or (asked and any(role.dtype in (None, "auto") for role in given) and asked != stored):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes | stored))
        raise RuntimeUnsupportedError(
            f"the roles are of several dtypes ({names}), and the vllm runtime needs one: pass dtype= for all, or {_HF}"
        )
    [dtype] = dtypes
    return dtype


def _as_dtype(dtype: Any) -> torch.dtype:
    resolved: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return resolved


def _is_merged(
    expert: Role, name: str, anti: Role, over: VllmRole, options: Mapping[str, Any], *, reads_other_prompt: bool
) -> bool:
    """Return whether an adapter becomes a model of its own, saying so where the user did not ask for it."""
    if is_asked_to_merge(options):
        return True
    reason = merge_reason(expert, name, anti, over.config, options)
    if reason is None and reads_other_prompt:
        reason = "it reads another prompt"
    if reason is not None:
        warnings.warn(
            f"the adapter of {name} is merged into a second copy of its anti, as {reason}: equal results, but no "
            "memory shared.",
            ProxyTuneWarning,
            stacklevel=2,
        )
    return reason is not None


class _Merged:
    """Adapters merged into their antis on disk, in a temporary folder that is made with the first."""

    def __init__(self) -> None:
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, expert: Role, anti: Role, name: str) -> Role:
        """Return the expert as a model of its own."""
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="proxytune-")
        # On the CPU: what this process kept of a GPU's memory the engine could not use.
        model = load_model(replace(anti, device_map="cpu"), "anti")
        adapted, _ = load_adapter(expert, name, model, anti)
        folder = Path(self.folder.name) / name
        adapted.merge_and_unload().save_pretrained(folder)
        return Role(str(folder), dtype=expert.dtype if expert.dtype is not None else anti.dtype)
