"""A proxy folder as the model of vLLM's own programs (`vllm serve FOLDER`), with nothing but the plugin installed.

To vLLM the folder's config is the base's with the composite's plan inside, and its weights are the base's; tokenizer
and the ids that end a text are the folder's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from proxytune.errors import RoleError, RuntimeUnsupportedError
from proxytune.options import pair_alphas
from proxytune.own_paths import path_mark, resolve_source
from proxytune.roles import Role, Term, is_word
from proxytune.rules import DEFAULT
from proxytune.vllm import compat
from proxytune.vllm.alpha import processor_name
from proxytune.vllm.composite import new_composite
from proxytune.vllm.plan import Plan

DRAWS = "proxytune.vllm.seeded_sampling:SeededSampling"

_ROLES = ("base", "expert", "anti")
_SERVE = "`proxytune serve` can"


class ProxyFolderConfig(PreTrainedConfig):
    """Config class that vLLM reads a config.json of `model_type` proxytune with."""

    model_type = "proxytune"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the base's config with the composite's plan in it.

        Raises:
            RoleError: It is no proxy folder, or a role it names is gone.
            RuntimeUnsupportedError: vLLM cannot run it, or not without `proxytune serve`.
        """
        folder = kwargs.pop("name_or_path", None) or config_dict.get("_name_or_path") or "."
        is_unused_asked_for = kwargs.pop("return_unused_kwargs", False)
        config = _base_config(_Folder.of(config_dict, Path(str(folder))))
        return (config, kwargs) if is_unused_asked_for else config


class ProxyFolderSettings(VerifyAndUpdateConfig):
    """Settings that vLLM takes when its model turns out to be a composite."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Have a proxy folder's weights, strengths, draws and ends be the composite's; others have said all that."""
        plan = Plan.of(model_config.hf_config)
        base = plan.roles[0]
        folder = model_config.model
        if folder == base.model:
            return
        compat.choose_runner()
        given = list(model_config.logits_processors or [])
        model_config.logits_processors = [*given, processor_name(len(plan.pairs)), DRAWS]
        if model_config.generation_config == "auto" and (Path(folder) / "generation_config.json").is_file():
            model_config.generation_config = folder
        model_config.model, model_config.revision = base.model, base.revision


@dataclass(frozen=True)
class _Folder:
    """A proxy folder's config.json."""

    base: Role
    pairs: list[tuple[Term, Term]]
    settings: Any

    @classmethod
    def of(cls, entry: Mapping[str, Any], folder: Path) -> "_Folder":
        try:
            terms = [(name, pair[name]) for pair in entry["pairs"] for name in _ROLES[1:]]
            roles = [entry["base"], *(term for name, term in terms if not is_word(term, name))]
            mark = entry.get("path_mark")
            is_trusted = mark is not None and mark == path_mark(role["source"] for role in roles)
            base = _role(entry["base"], folder, is_trusted=is_trusted)
            pair_roles = [
                term if is_word(term, name) else _role(term, folder, is_trusted=is_trusted) for name, term in terms
            ]
            pairs = list(zip(pair_roles[::2], pair_roles[1::2], strict=True))
            alphas = pair_alphas([pair.get("alpha", 1.0) for pair in entry["pairs"]], len(pairs))
        except (KeyError, TypeError, AttributeError) as error:
            raise RoleError(f"{str(folder)!r} names no base and pairs: write it with save_pretrained.") from error
        if not pairs:
            raise RoleError(f"{str(folder)!r} names no pair of expert and anti: write it with save_pretrained.")
        formats = {f"{role}_prompt": entry.get(f"{role}_prompt", "raw") for role in _ROLES}
        pair_formats = {pair.get(f"{role}_prompt") for pair in entry["pairs"] for role in _ROLES[1:]} - {None}
        if len({*formats.values(), *pair_formats}) > 1:
            raise RuntimeUnsupportedError(
                f"base, expert and anti read prompts in different formats; vLLM alone cannot, {_SERVE}: start it so."
            )
        settings = SimpleNamespace(
            alphas=alphas,
            vocab_size=entry.get("vocab_size"),
            rule=entry.get("rule", DEFAULT),
            prompt_formats=lambda pair: (formats["expert_prompt"], formats["anti_prompt"]),
            **formats,
        )
        return cls(base, pairs, settings)


def _role(entry: Mapping[str, Any], folder: Path, *, is_trusted: bool) -> Role:
    """Return a role as a proxy folder names it, whose paths are followed as everywhere else."""
    source = resolve_source(entry["source"], folder, is_downloaded=not folder.is_dir(), is_trusted=is_trusted)
    return Role(**{**entry, "source": source})


def _base_config(folder: _Folder) -> Any:
    composite = new_composite(folder.base, folder.pairs, folder.settings, None)
    if composite.merged is not None:
        composite.merged.cleanup()
        raise RuntimeUnsupportedError(f"vLLM alone cannot merge this adapter into its anti, {_SERVE}: start it so.")
    config = AutoConfig.from_pretrained(composite.plan().roles[0].model, revision=folder.base.revision)
    config = config.get_text_config(decoder=True)
    for name, value in composite.plan().overrides().items():
        setattr(config, name, value)
    config.max_position_embeddings = composite.config.max_position_embeddings
    config.dtype = composite.dtype
    return config
