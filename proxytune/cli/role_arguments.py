"""The options that name base, expert and anti and say how each is loaded, shared by all commands."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxytune.cli.remote_arguments import add_remote_arguments, with_remote_settings
from proxytune.cli.runtime_arguments import add_runtime_arguments, engine_options
from proxytune.cli.stderr import is_watched, note, quiet_progress, starting_engine
from proxytune.errors import OptionError, ProxyTuneError, RoleError
from proxytune.hub import require_available
from proxytune.options import check_alpha
from proxytune.prompts import TEMPLATES, PromptFormat

if TYPE_CHECKING:
    from proxytune.generator import ProxyGenerator
    from proxytune.roles import Pair, Role
    from proxytune.runtimes import RuntimeName

ROLES = ("base", "expert", "anti")
_SETTINGS = ("dtype", "device_map", "quantization", "revision")


@dataclass(frozen=True, kw_only=True)
class RoleChoice:
    """The roles the user chose, checked as far as can be without loading them.

    Attributes:
        base: M.
        pairs: M+ and M− with their strength, each a `Role`.
        formats: `base_prompt`, `expert_prompt` and `anti_prompt`.
        tokenizer: In place of the roles' own, if any.
        eos_token_ids: Likewise.
        is_bundled: True if it is the trio that comes with the package, because none was named.
        runtime: Runtime that runs them.
        engine_options: vLLM's.
        speculation: Limit of drafting.
        draft: Who drafts.
        rule: Text of what combines their logits; None is the default.
        is_debug: True if vLLM may log all it wants to.
    """

    base: "Role"
    pairs: tuple["Pair", ...]
    formats: Mapping[str, str]
    tokenizer: str | None = None
    eos_token_ids: tuple[int, ...] | None = None
    is_bundled: bool = False
    runtime: "RuntimeName" = "hf"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    speculation: Any = "auto"
    draft: str = "expert"
    rule: str | None = None
    is_debug: bool = False

    @property
    def alphas(self) -> tuple[float, ...]:
        """The strength of each pair."""
        return tuple(pair.alpha for pair in self.pairs)

    @contextmanager
    def loaded(self) -> Iterator["ProxyGenerator"]:
        """Yield the loaded roles, and end vLLM's processes behind them."""
        from proxytune.generator import ProxyGenerator

        is_engine = self.runtime != "hf"
        options = {"use_tqdm_on_load": is_watched(), **self.engine_options} if is_engine else self.engine_options
        with quiet_progress(), starting_engine(is_debug=self.is_debug) if is_engine else nullcontext():
            generator = ProxyGenerator(
                base=self.base,
                pairs=self.pairs,
                tokenizer=self.tokenizer,
                eos_token_ids=self.eos_token_ids,
                runtime=self.runtime,
                engine_options=options,
                speculation=self.speculation,
                draft=self.draft,
                rule=self.rule,
                **self.formats,  # type: ignore[arg-type]
            )
        with closing(generator):
            yield generator


def add_role_arguments(
    command: argparse.ArgumentParser,
    *,
    has_model: bool = True,
    has_formats: bool = True,
    has_runtime: bool = True,
    has_remote: bool = False,
) -> None:
    """Add the options; without `has_model` no proxy folder can be named, without `has_remote` no base behind an API."""
    group = command.add_argument_group(
        "roles", "hub ids or folders; with none given, the trio that comes with proxytune"
    )
    group.add_argument("--base", metavar="MODEL", help="M: the model to steer")
    group.add_argument(
        "--expert",
        metavar="MODEL",
        help="M+: the small tuned model, or a peft adapter over the anti; or 'base', itself",
    )
    group.add_argument(
        "--anti", metavar="MODEL", help="M-: the small model before tuning; or 'base', itself, or 'none', no anti"
    )
    group.add_argument("--amateur", metavar="MODEL", help="in place of expert and anti: contrastive decoding")
    group.add_argument("--domain", metavar="MODEL", help="likewise: a product, or by --rule mixture a mixture, with it")
    group.add_argument("--reward-model", metavar="MODEL", help="likewise: an autoregressive reward model")
    group.add_argument("--negative-prompt", metavar="FORMAT", help="likewise: guidance, away from the base under it")
    if has_model:
        group.add_argument(
            "--model", metavar="FOLDER", help="in place of the three: what `proxytune save` wrote, or its hub id"
        )
        group.add_argument("--trust-paths", action="store_true", help="follow its paths to models far from it")
    group.add_argument("--alpha", type=float, metavar="NUMBER", help="strength of steering (1.0; 0 is the base alone)")
    group.add_argument(
        "--rule", metavar="NAME[,KEY=VALUE]", help="how logits are combined (proxy), as in contrastive,beta=0.1"
    )
    group.add_argument("--tokenizer", metavar="MODEL", help="for all roles, where the models come without")
    if has_formats:
        known = ", ".join(["raw", "chat", *TEMPLATES])
        formats = command.add_argument_group("prompt formats", f"{known}, or a text with {{prompt}} in it")
        for role in ROLES:
            formats.add_argument(f"--{role}-prompt", metavar="FORMAT", help=f"how the {role} reads prompts")
    _add_loading(command.add_argument_group("loading", "for all roles, or for one, as in --base-dtype"))
    if has_remote:
        add_remote_arguments(command)
    if has_runtime:
        add_runtime_arguments(command)


def choose_roles(args: argparse.Namespace, *, raw_format: str = "raw") -> RoleChoice:
    """Return the roles the arguments name; `raw_format` is the format of roles for which nothing else was said.

    Raises:
        RoleError: One is missing, or both a proxy folder and roles were given.
        OptionError: A setting out of range.
        PromptFormatError: An unknown format.
    """
    from proxytune.checkpoints import require_files
    from proxytune.roles import Pair, is_word, named_roles, term_of

    if args.alpha is not None:
        check_alpha(args.alpha)
    args = with_terms(args)
    given = [role for role in ROLES if getattr(args, role)]
    folder = getattr(args, "model", None)
    if folder and given:
        raise RoleError(f"--model and --{given[0]} were both given: a proxy folder names all three roles, so pass one.")
    sources: dict[str, str | None] = {
        role: source for role in given if not is_word(source := getattr(args, role), role)
    }
    draft = getattr(args, "draft", "expert")
    sources |= {"model": folder, "tokenizer": args.tokenizer, "draft": None if draft == "expert" else draft}
    _require_available(sources)
    if folder:
        return _from_folder(args, folder, raw_format)
    named, is_bundled = {role: getattr(args, role) for role in given}, not given
    if is_bundled:
        from proxytune.demo import trio_path

        named = {role: str(trio_path() / role) for role in ROLES}
        note("no roles were named: this is the tiny trio that comes with proxytune.")
    missing = next((role for role in ROLES if role not in named), None)
    if missing:
        raise RoleError(f"{missing} is missing: pass --{missing} with a hub id or a folder.")
    base = _base(args, named["base"])
    expert, anti = (term_of(named[role], role, base, **_settings(args, role)) for role in ROLES[1:])
    if not getattr(args, "dry_run", False):  # a plan needs configurations alone
        for name, role in named_roles(base, [(expert, anti)]).items():
            require_files(role, name)
    return RoleChoice(
        base=base,
        pairs=(Pair(expert, anti, 1.0 if args.alpha is None else args.alpha),),
        formats=_formats(args, {}, raw_format),
        tokenizer=args.tokenizer,
        is_bundled=is_bundled,
        rule=_rule(args),
        **_runtime(args),
    )


def _require_available(sources: Mapping[str, str | None]) -> None:
    """Raise for an id that is nowhere; have the hub's client, not imported yet, take the others from its cache."""
    reasons = [require_available(name, source) for name, source in sources.items() if source]
    reason = next(filter(None, reasons), None)
    if reason is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        note(f"the hub cannot be asked ({reason}): models named by id are taken from its cache on this machine.")


def _add_loading(group: Any) -> None:
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--quantization", metavar="BITS", help="4bit or 8bit: load the weights so (bitsandbytes)")
    for bits in ("8bit", "4bit"):
        text = f"short for --quantization {bits}"
        exclusive.add_argument(f"--load-in-{bits}", dest="quantization", action="store_const", const=bits, help=text)
    group.add_argument("--dtype", help="float32, float16, bfloat16 or auto (as stored; the default)")
    group.add_argument("--device-map", type=_device_map, help="as in transformers: auto, cuda:1, cpu, or a JSON object")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    for role in ROLES:
        group.add_argument(f"--{role}-quantization", help=argparse.SUPPRESS)
        group.add_argument(f"--{role}-dtype", help=argparse.SUPPRESS)
        group.add_argument(f"--{role}-device-map", type=_device_map, help=argparse.SUPPRESS)
        group.add_argument(f"--{role}-revision", help=argparse.SUPPRESS)
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the models")
    group.add_argument(
        "--trust-adapter-base",
        action="store_true",
        help="take an adapter as the expert although it names another base than the anti (its folder moved)",
    )


def _from_folder(args: argparse.Namespace, folder: str, raw_format: str) -> RoleChoice:
    from proxytune.checkpoints import load_tokenizer
    from proxytune.hf.folder import local_folder
    from proxytune.hf.loading import base_of, load_config, term_from
    from proxytune.roles import Pair, Role

    try:
        config = load_config(folder, base_url=getattr(args, "base_url", None), trust_paths=args.trust_paths)
    except (OSError, ValueError) as error:
        if isinstance(error, ProxyTuneError):
            raise
        reason = " ".join(str(error).split())
        raise RoleError(f"the config.json of {folder!r} cannot be read: {reason[:300]}") from error
    folder = str(local_folder(folder))
    pairs = []
    for number, entry in enumerate(config.pairs or []):
        expert, anti = (term_from(entry[role], **_settings(args, role)) for role in ("expert", "anti"))
        prompt_formats = {
            key: None if getattr(args, key, None) else entry.get(key) for key in ("expert_prompt", "anti_prompt")
        }
        pairs.append(Pair(expert, anti, config.alphas[number] if args.alpha is None else args.alpha, **prompt_formats))
    stored = {f"{role}_prompt": getattr(config, f"{role}_prompt") for role in ROLES}
    has_tokenizer = load_tokenizer(Role(folder)) is not None
    return RoleChoice(
        base=_base(args, base_of(config)),
        pairs=tuple(pairs),
        formats=_formats(args, stored, raw_format),
        tokenizer=args.tokenizer or (folder if has_tokenizer else None),
        eos_token_ids=_stored_eos(Path(folder)),
        rule=_rule(args) or config.rule,
        **_runtime(args),
    )


def _base(args: argparse.Namespace, source: Any) -> "Role":
    """Return the base from its name, or from what a proxy folder says of it."""
    from proxytune.roles import Role

    # A folder's URL has been replaced already by the one that was given.
    base = source if isinstance(source, Role) else Role.of(source, "base", base_url=getattr(args, "base_url", None))
    if not base.is_remote:
        return with_remote_settings(args, replace(base, **_settings(args, "base")))
    key = next((name for name in _SETTINGS if getattr(args, f"base_{name}") is not None), None)
    if key is not None:
        raise OptionError(
            f"--base-{key.replace('_', '-')} is for a base that is loaded here: {base.name_or_path!r} is behind an API."
        )
    return with_remote_settings(args, base)


def _runtime(args: argparse.Namespace) -> dict[str, Any]:
    options = engine_options(args)
    return {
        "runtime": getattr(args, "runtime", "hf"),
        "engine_options": options,
        "speculation": getattr(args, "speculation", "auto"),
        "draft": getattr(args, "draft", "expert"),
        "is_debug": args.debug,
    }


def with_terms(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with the roles and the rule of a method that they name."""
    from proxytune.methods import METHODS, as_terms

    given = vars(args)
    named = {name: given[name] for name in METHODS}
    if all(value is None for value in named.values()):
        return args
    others = as_terms(named, args.expert, args.anti, given.get("anti_prompt"), args.rule)
    terms = dict(zip(("expert", "anti", "anti_prompt", "rule"), others, strict=True))
    return argparse.Namespace(**{**given, **dict.fromkeys(METHODS), **terms})


def _rule(args: argparse.Namespace) -> str | None:
    """Return the rule that was asked for, checked; None for none."""
    if args.rule is None:
        return None
    from proxytune.rules import rule_of

    return str(rule_of(args.rule))


def _settings(args: argparse.Namespace, role: str) -> dict[str, Any]:
    """Return what was said about loading this role: its own word first, then the one for all."""
    settings = {}
    for name in _SETTINGS:
        role_value = getattr(args, f"{role}_{name}")
        value = role_value if role_value is not None else getattr(args, name)
        if value is not None:
            settings[name] = value
    flags = {"trust_remote_code": args.trust_remote_code}
    if role == "expert":
        flags["trust_adapter_base"] = args.trust_adapter_base
    return settings | flags


def _formats(args: argparse.Namespace, stored: Mapping[str, str], raw_format: str) -> dict[str, str]:
    formats = {}
    for role in ROLES:
        key = f"{role}_prompt"
        name = getattr(args, key, None) or stored.get(key, "raw")
        is_open = name == "raw" and getattr(args, key, None) is None
        formats[key] = PromptFormat(raw_format if is_open else name).name
    return formats


def _stored_eos(folder: Path) -> tuple[int, ...] | None:
    """Return the ids that end a text as the proxy folder states them."""
    path = folder / "generation_config.json"
    ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    if ids is None:
        return None
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _device_map(text: str) -> Any:
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise OptionError(f"the device map {text!r} is not a JSON object: {error}.") from error
    return int(text) if text.isdecimal() else text
