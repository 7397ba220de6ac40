"""From roles to a composite and back: loading every distinct model once, and the proxy folder."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from proxytune.adapters import changes_base, is_plain_lora, load_adapter, read_adapter_config
from proxytune.checkpoints import load_model, load_tokenizer, require_files
from proxytune.errors import ProxyTuneWarning, RoleError
from proxytune.hf.adapter_probe import probe_logits, require_shareable
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.folder import AUTO_MAP, local_folder, relative_source, write_card, write_code
from proxytune.hf.remote_base import RemoteCausalLM, connect
from proxytune.hf.remote_folder import remote_settings, resolve_server, stored_settings
from proxytune.hf.role import Adapted
from proxytune.library_errors import reason_of
from proxytune.options import check_alpha
from proxytune.own_paths import path_mark, resolve_source
from proxytune.prompts import PromptFormat
from proxytune.roles import BASE, Pair, Role, Term, is_word, named_roles, require_few, role_of
from proxytune.rules import Rule, rule_of

_STORED = ("dtype", "quantization", "revision", "trust_adapter_base", "gguf_file")
_PAIR = ("expert", "anti")


def load_models(
    base: Role, pairs: Sequence[tuple[Term, Term]], tokenizer: Any = None
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the models of base and pairs; equal roles are one model, and an anti that is none is None.

    Order of loading is base, expert, anti, so that the largest model gets the memory first. A base behind an API is
    asked what it can do, with `tokenizer` or one of the small models', whose ids are its own by contract.
    """
    _require_all(base, pairs)
    loaded: dict[Any, Any] = {}
    wrappers: dict[int, Any] = {}
    base_model = connect_base(base, pairs, tokenizer) if base.is_remote else _load_once(base, "base", loaded)
    models = []
    for number, (expert, anti) in enumerate(pairs):
        suffix = "" if len(pairs) == 1 else f"_{number + 1}"

        def model_of(term: Term, name: str) -> Any:
            if isinstance(term, Role):
                return _load_once(term, name, loaded)
            return base_model if term == BASE else None

        if not isinstance(expert, Role) or not expert.is_adapter:
            expert_model = model_of(expert, f"expert{suffix}")
            models.append((expert_model, model_of(anti, f"anti{suffix}")))
            continue
        below = role_of(anti, base)
        if below is None or below.is_remote:
            raise RoleError(
                f"expert{suffix} is an adapter, and its anti is {str(anti)!r}: pass the model that it adapts as anti."
            )
        anti_model = model_of(anti, f"anti{suffix}")
        models.append((_load_adapted(expert, f"expert{suffix}", below, anti_model, wrappers), anti_model))
    return base_model, models


def config_of(
    base: Role,
    pairs: Sequence[Pair],
    roles: Sequence[tuple[Term, Term]],
    formats: Mapping[str, str],
    rule: Rule | str | None = None,
) -> ProxyTunedConfig:
    """Return the config that names these roles, with checked strengths; `rule` as in `rule_of`."""
    entries = []
    for pair, (expert, anti) in zip(pairs, roles, strict=True):
        entry = {"expert": stored(expert), "anti": stored(anti), "alpha": check_alpha(pair.alpha)}
        overrides = {"expert_prompt": pair.expert_prompt, "anti_prompt": pair.anti_prompt}
        entries.append(entry | {key: value for key, value in overrides.items() if value is not None})
    return ProxyTunedConfig(base=stored(base), pairs=entries, rule=str(rule_of(rule)), **formats)


def stored(role: Term) -> Any:
    """Return what a proxy folder keeps of a role: never trust_remote_code, nor where it was placed; words stay."""
    if not isinstance(role, Role):
        return role
    entry: dict[str, Any] = {"source": role.name_or_path}
    if role.is_remote:
        return entry | {"remote": stored_settings(role.source)}
    for key in _STORED:
        value = getattr(role, key)
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        elif hasattr(value, "to_dict"):
            value = value.to_dict()
        if value:
            entry[key] = value
    return entry


def load_config(
    folder: Any,
    config: ProxyTunedConfig | None = None,
    *,
    base_url: str | None = None,
    revision: str | None = None,
    trust_paths: bool = False,
) -> ProxyTunedConfig:
    """Return the config of a proxy folder (or the one given in its place), with the folders it names made absolute.

    `folder` may be a hub id, of which `revision` is a branch, tag or commit. `base_url` takes the place of the stored
    one of a base behind an API; without it no key will be sent there. `trust_paths` follows paths that lead out of it.

    Raises:
        RoleNotFoundError: No proxy folder there.
        RoleError: It names no base and pairs, something else besides, or a path outside it that nobody asked to follow.
        OptionError: An α is no finite number, or there is no such rule.
    """
    path = local_folder(folder, revision)
    try:
        config = ProxyTunedConfig.from_pretrained(str(path)) if config is None else copy.deepcopy(config)
    except Exception as error:
        raise RoleError(f"{str(path / 'config.json')!r} cannot be read ({reason_of(error)}): get it again.") from error
    if not config.base or not config.pairs:
        raise RoleError(f"{str(path / 'config.json')!r} names no base and pairs: it is not a proxy folder.")
    if not _is_well_formed(config):
        raise RoleError(
            f"{str(path / 'config.json')!r}: base, and expert and anti of each pair, need a source, "
            f"and may have {', '.join(_STORED)}, nothing else: write it with save_pretrained."
        )
    require_few(len(config.pairs))
    size = config.vocab_size
    if size is not None and not (type(size) is int and size > 0):
        raise RoleError(f"{str(path / 'config.json')!r} says vocab_size={size!r}: write it with save_pretrained.")
    for form in (
        config.base_prompt,
        *(form for pair in range(len(config.pairs)) for form in config.prompt_formats(pair)),
    ):
        PromptFormat(form)
    resolve_server(config.base, base_url)
    _ = config.alphas
    rule_of(config.rule)
    sources = [entry["source"] for entry in _role_entries(config)]
    is_trusted = trust_paths or (config.path_mark is not None and config.path_mark == path_mark(sources))
    is_downloaded = not Path(folder).expanduser().is_dir()
    for entry in _role_entries(config):
        if not entry["source"].startswith("openai:"):
            entry["source"] = resolve_source(entry["source"], path, is_downloaded=is_downloaded, is_trusted=is_trusted)
    return config


def roles_of(config: ProxyTunedConfig, **defaults: Any) -> tuple[Role, list[tuple[Term, Term]]]:
    """Return the roles a config names; `defaults` fill (dtype: replace) what it leaves open."""
    given = {key: value for key, value in defaults.items() if value is not None}
    base = base_of(config, **given)
    pairs = [(term_from(pair["expert"], **given), term_from(pair["anti"], **given)) for pair in config.pairs or []]
    return base, pairs


def term_from(entry: Any, **given: Any) -> Term:
    """Return an expert or anti as a config names it; `given` says how a model is loaded."""
    return entry if isinstance(entry, str) else Role(**{**entry, **given})  # type: ignore[return-value]


def base_of(config: ProxyTunedConfig, **given: Any) -> Role:
    """Return the base a config names; `given` says how it is loaded, which one behind an API is not."""
    entry = dict(config.base or {})
    if "remote" in entry:
        return Role(remote_settings(entry))
    return Role(**{**entry, **given})


def stored_generation_config(folder: Any) -> GenerationConfig | None:
    """Return a proxy folder's generation config, None if it holds none."""
    if not (Path(folder) / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(str(folder))


def save_composite(composite: Any, folder: Any) -> None:
    """Write a proxy folder's configs, its code for Auto classes and its card; no weights."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = ProxyTunedConfig(**{**composite.config.to_dict()})
    for entry in _role_entries(config):
        if not entry["source"]:
            raise RoleError(
                "a role was passed as a loaded model without a name: save that model to a folder and pass the folder."
            )
        entry["source"] = relative_source(entry["source"], path)
    config.path_mark = path_mark(entry["source"] for entry in _role_entries(config))
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(str(path))
    composite.generation_config.save_pretrained(str(path))
    write_code(path)
    write_card(path, config)


def _is_well_formed(config: ProxyTunedConfig) -> bool:
    """Return whether every role's entry is one; in particular no folder may ask that its code be trusted."""
    pairs = config.pairs if isinstance(config.pairs, list) else [None]
    terms = [(name, pair.get(name) if isinstance(pair, dict) else None) for pair in pairs for name in _PAIR]
    entries = [config.base, *(term for name, term in terms if not is_word(term, name))]
    if isinstance(config.base, dict) and set(config.base) == {"source", "remote"}:
        entries[0] = {"source": config.base["source"]}
    return all(
        isinstance(entry, dict) and isinstance(entry.get("source"), str) and set(entry) <= {"source", *_STORED}
        for entry in entries
    )


def _role_entries(config: ProxyTunedConfig) -> list[dict[str, Any]]:
    terms = [pair[name] for pair in config.pairs or [] for name in _PAIR]
    return [config.base or {}, *(term for term in terms if isinstance(term, dict))]


def _require_all(base: Role, pairs: Sequence[tuple[Term, Term]]) -> None:
    """Look for every role's files, so that a missing expert is not found after minutes of loading the base."""
    for name, role in named_roles(base, pairs).items():
        require_files(role, name.partition("_")[0])


def connect_base(base: Role, pairs: Sequence[tuple[Term, Term]], tokenizer: Any = None) -> RemoteCausalLM:
    """Return a base behind an API, asked with `tokenizer`, or with the first that a small model brings.

    Raises:
        RoleError: There is no tokenizer; or as in `proxytune.hf.remote_base.connect`.
        VocabularyError: The server's token ids are not the tokenizer's.
    """
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(Role(tokenizer))
    for role in named_roles(base, pairs).values():
        tokenizer = load_tokenizer(role) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise RoleError(
            "neither expert nor anti brings a tokenizer, and a base behind an API has none: pass tokenizer= with a "
            "folder, a hub id or an object."
        )
    return connect(base.source, tokenizer)


def _load_once(role: Role, name: str, loaded: dict[Any, Any]) -> Any:
    key = id(role.source) if role.is_loaded else _settings(role)
    if key not in loaded:
        model = load_model(role, name)
        # A PeftModel's forward hides positions and cache, so the model below it runs, with its adapter on.
        loaded[key] = _probed(Adapted(model, model.active_adapter), name) if role.is_adapter else model
    return loaded[key]


def _load_adapted(expert: Role, name: str, anti: Role, anti_model: Any, wrappers: dict[int, Any]) -> Adapted:
    """Return an expert's adapter over its anti, or over a copy of it where it changes the weights below."""
    if expert.is_loaded:
        return _probed(Adapted(*load_adapter(expert, name, anti_model, anti)), name)
    config = read_adapter_config(expert, name, anti)
    shares_anti = not changes_base(config)
    model = anti_model if shares_anti else _copied(anti, anti_model, name)
    before = None if is_plain_lora(config) or not shares_anti else probe_logits(model)
    peft_model, adapter_name = load_adapter(expert, name, model, anti, wrappers.get(id(model)))
    wrappers[id(model)] = peft_model
    return _probed(Adapted(peft_model, adapter_name), name, before)


def _probed(adapted: Adapted, name: str, anti_logits: Any = None) -> Adapted:
    """Return what was given; raise RoleError where its adapter is more than low-rank factors and cannot be shared."""
    if not is_plain_lora(adapted.peft_model.peft_config[adapted.adapter_name]):
        require_shareable(adapted.peft_model, adapted.adapter_name, name, anti_logits)
    return adapted


def _copied(anti: Role, anti_model: Any, name: str) -> Any:
    """Return the anti once more, for an adapter that changes the weights of what it is loaded into."""
    warnings.warn(
        f"{name} is an adapter that changes its base's own weights as it is loaded: it gets a copy of the anti, which "
        "takes the anti's memory twice; merged into a model of its own it would take no more.",
        ProxyTuneWarning,
        stacklevel=2,
    )
    return copy.deepcopy(anti_model) if anti.is_loaded else load_model(anti, name)


def _settings(role: Role) -> str:
    """Return what makes a role to be loaded another than the next, however its folder and dtype were written."""
    folder = Path(str(role.source))
    source = str(folder.resolve()) if folder.exists() else str(role.source)
    return str({**vars(role), "source": source, "dtype": str(role.dtype).removeprefix("torch.")})


def merged_generation_config(composite: Any) -> GenerationConfig:
    """Return the ids that begin and end a text: those of every role together, sampling defaults of none.

    A base ends documents with one token, its chat expert turns with another; either ends the answer.
    """
    ids: list[int] = []
    for role in composite.roles:
        for source in (role.model.generation_config, role.config):
            value = getattr(source, "eos_token_id", None)
            ids += [] if value is None else value if isinstance(value, list) else [value]
    eos = [index for index in dict.fromkeys(ids) if index < composite.config.vocab_size]
    base = composite.base.generation_config
    pad = (
        base.pad_token_id if base.pad_token_id is not None else getattr(composite.roles[0].config, "pad_token_id", None)
    )
    return GenerationConfig(
        bos_token_id=base.bos_token_id,
        eos_token_id=eos or None,
        # Some configs say -1.
        pad_token_id=pad if pad is not None and pad >= 0 else (eos[0] if eos else 0),
    )
