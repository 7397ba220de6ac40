"""Base, expert and anti as a user gives them: hub id, folder, loaded model, adapter, or a base behind an API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from proxytune.errors import OptionError, RoleError, UnknownOptionError
from proxytune.gguf_file import is_gguf
from proxytune.hub import hub_arguments, looks_local
from proxytune.options import check_alpha
from proxytune.remote.settings import RemoteSettings, remote_model_name

# In place of an expert or anti: the base itself; and of an anti, no model at all (the expert's log p is added alone).
BASE, NONE = "base", "none"
QUANTIZATIONS = ("4bit", "8bit")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_NAMED = {"dtype": "'bfloat16'", "quantization": "'4bit'", "revision": "'main'"}
_ADAPTER_CONFIG = "adapter_config.json"
_MAX_PAIRS = 64
_LOADING = (
    "dtype",
    "device_map",
    "quantization",
    "revision",
    "trust_remote_code",
    "trust_adapter_base",
    "gguf_file",
    "model_kwargs",
)


@dataclass(frozen=True)
class Role:
    """One of base, expert and anti, and how to load it.

    Attributes:
        source: Hub id, local folder, the path of a GGUF file, a loaded model, or (for an expert) a peft adapter or
            `PeftModel` over its anti. Of a base behind an API its `RemoteSettings`; then nothing below may be given.
        dtype: `"bfloat16"`, a torch dtype, or `"auto"` (what the weights are stored in).
        device_map: As in transformers; None is the first GPU, or the CPU.
        quantization: `"4bit"` or `"8bit"` (bitsandbytes), a transformers quantisation config, or its dict. A model that
            is quantised on disk needs nothing here.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model. Never stored in a proxy folder.
        trust_adapter_base: Take an adapter even though it names another base than the anti (its folder moved).
        gguf_file: Name of a GGUF file in `source`, a folder or hub id, whose weights are then dequantised. A path that
            ends in .gguf is both.
        model_kwargs: Anything else for transformers' `from_pretrained`, `attn_implementation` for instance.
    """

    source: Any
    dtype: Any = None
    device_map: Any = None
    quantization: Any = None
    revision: str | None = None
    trust_remote_code: bool = False
    trust_adapter_base: bool = False
    gguf_file: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settle_gguf_file()
        if isinstance(self.quantization, str) and self.quantization not in QUANTIZATIONS:
            raise OptionError(f"quantization is {self.quantization!r}: it must be one of {', '.join(QUANTIZATIONS)}.")
        if isinstance(self.dtype, str) and self.dtype not in _DTYPES:
            raise OptionError(f"dtype is {self.dtype!r}: it must be float32, float16, bfloat16 or auto.")
        for name, example in _NAMED.items():
            if isinstance(getattr(self, name), bool | int | float | list):
                raise OptionError(f"{name} is {getattr(self, name)!r}: it must be a name, as in {example}.")
        if self.is_remote:
            given = next((name for name in _LOADING if getattr(self, name) not in (None, False, {})), None)
            if given is not None:
                raise OptionError(
                    f"{given} was given for a base behind an API, which is loaded by its server: leave it out there."
                )

    def _settle_gguf_file(self) -> None:
        """Split the path of a GGUF file into folder and file.

        Raises:
            OptionError: Two files, or a setting that a GGUF file leaves no choice in.
        """
        if is_gguf(self.source):
            path = Path(str(self.source))
            if self.gguf_file not in (None, path.name):
                raise OptionError(f"gguf_file is {self.gguf_file!r}, and the source names {path.name!r}: give one.")
            object.__setattr__(self, "source", str(path.parent))
            object.__setattr__(self, "gguf_file", path.name)
        if self.gguf_file is None:
            return
        if self.is_loaded:
            raise OptionError(f"gguf_file is {self.gguf_file!r} for a model that is loaded already: leave it out.")
        if self.quantization is not None:
            raise OptionError(
                f"quantization={self.quantization!r} with the GGUF file {self.gguf_file!r}, whose weights are "
                "dequantised as they are read: leave it out, or save the model to a folder first."
            )

    @classmethod
    def of(cls, source: Any, name: str, *, base_url: str | None = None, **defaults: Any) -> "Role":
        """Return `source` as a Role, filling what it leaves open from `defaults`.

        Args:
            source: A value of `Role.source`, or a Role; `"openai:<model>"` is a base behind an API.
            name: base, expert, anti or draft.
            base_url: Of that API.
            **defaults: Loading settings of models; a base behind an API is not loaded, and takes none of them.

        Raises:
            RoleError: Nothing was given for the role; or it is behind an API, and no base, or without `base_url`.
            UnknownOptionError: `base_url` for a base that is a model here.
        """
        if source is None or source == "":
            raise RoleError(
                f"{name} is missing: pass a hub id, a folder or a loaded model "
                "(expert is the tuned small model M+, anti the same model before tuning, M-)."
            )
        role = source if isinstance(source, cls) else cls(source)
        if role.is_remote or remote_model_name(role.source) is not None:
            return replace(role, source=_remote_settings(role.source, name, base_url))
        if base_url is not None:
            raise UnknownOptionError(
                f"base_url is for a base behind an API, and {name} is {role.name_or_path!r}: "
                "pass base='openai:<model>' with it."
            )
        return replace(role, **{key: value for key, value in defaults.items() if getattr(role, key) in (None, False)})

    @property
    def is_remote(self) -> bool:
        """True if the source is a model behind an API."""
        return isinstance(self.source, RemoteSettings)

    @property
    def is_loaded(self) -> bool:
        """True if the source is a model rather than the name of one."""
        if isinstance(self.source, str | Path | RemoteSettings):
            return False
        import torch  # only here: naming roles must not wait for it

        return isinstance(self.source, torch.nn.Module)

    @property
    def name_or_path(self) -> str:
        """The hub id or folder, also of a loaded model, or "openai:<model>"; empty for a model that was never saved."""
        if self.is_remote:
            return f"openai:{self.source.model}"
        if not self.is_loaded:
            return str(self.source)
        peft_config = peft_config_of(self.source)
        return str(self.source.name_or_path or "") if peft_config is None else ""

    @property
    def location(self) -> dict[str, Any]:
        """Arguments of a config's or tokenizer's `from_pretrained` beside `name_or_path`."""
        arguments = {**self.hub_location, "trust_remote_code": self.trust_remote_code}
        return arguments if self.gguf_file is None else {**arguments, "gguf_file": self.gguf_file}

    @property
    def hub_location(self) -> dict[str, Any]:
        """Arguments of whatever is read from the hub by `name_or_path`."""
        return {"revision": self.revision, **hub_arguments(self.name_or_path)}

    @property
    def is_adapter(self) -> bool:
        """True if this is a peft adapter over another model."""
        if self.is_remote or self.gguf_file is not None:
            return False
        if self.is_loaded:
            return peft_config_of(self.source) is not None
        return _has_adapter_config(str(self.source), self.revision)


Term = Role | Literal["base", "none"]


@dataclass(frozen=True)
class Pair:
    """An expert and its anti, whose difference steers with strength `alpha`.

    Either may be `"base"`, the base itself, which is loaded once, and runs once under the base's own prompt format. The
    anti may be `"none"`: then the expert's log-probabilities are added.

    `expert_prompt` and `anti_prompt` override the generator's formats for this pair: one model under two prompts is a
    pair too.
    """

    expert: Any
    anti: Any
    alpha: float = 1.0
    expert_prompt: str | None = None
    anti_prompt: str | None = None


def as_pairs(expert: Any, anti: Any, pairs: Sequence[Pair] | None, alpha: float) -> list[Pair]:
    """Return the pairs that a caller gave, as one expert and anti with `alpha`, or as a list.

    Raises:
        RoleError: Something is missing.
        UnknownOptionError: Both ways at once.
        OptionError: α is no finite number.
    """
    if pairs is None:
        for name, source in (("expert", expert), ("anti", anti)):
            _ = is_word(source, name) or Role.of(source, name)
        return [Pair(expert, anti, check_alpha(alpha))]
    if expert is not None or anti is not None:
        raise UnknownOptionError("pass either expert and anti, or pairs, not both.")
    if alpha != 1.0:
        raise UnknownOptionError(f"alpha={alpha!r} with pairs: write it into each Pair(expert, anti, alpha).")
    if not pairs:
        raise RoleError("pairs is empty: pass at least one Pair(expert, anti).")
    require_few(len(pairs))
    return list(pairs)


def is_word(source: Any, name: str) -> bool:
    """Return whether the expert or anti (`name`) is a word in place of a model."""
    return isinstance(source, str) and (source == BASE or (source == NONE and name == "anti"))


def term_of(source: Any, name: str, base: Role, **defaults: Any) -> Term:
    """Return an expert or anti as a word or a Role; arguments and errors as in `Role.of`.

    Raises:
        RoleError: It is the word for the base, and a folder here has the same name and is not the base.
    """
    if not is_word(source, name):
        return Role.of(source, name, **defaults)
    if Path(source).is_dir() and not base.is_loaded and Path(base.name_or_path).resolve() != Path(source).resolve():
        raise RoleError(
            f"{name} is {source!r}, a word of its own ({BASE}: the base itself; {NONE}: no anti), and a folder here "
            f"has that name: pass {'./' + source!r} for the folder."
        )
    return BASE if source == BASE else NONE  # type: ignore[return-value]


def role_of(term: Term, base: Role) -> Role | None:
    """Return the role that an expert or anti is, the base's by its word; None for an anti that is none."""
    if isinstance(term, Role):
        return term
    return base if term == BASE else None


def named_roles(base: Role, pairs: Sequence[tuple[Term, Term]]) -> dict[str, Role]:
    """Return the roles that are models of their own by name, base first."""
    roles = {"base": base}
    for number, pair in enumerate(pairs, 1):
        suffix = "" if len(pairs) == 1 else f"_{number}"
        terms = zip(("expert", "anti"), pair, strict=True)
        roles |= {f"{name}{suffix}": term for name, term in terms if isinstance(term, Role)}
    return roles


def require_few(num_pairs: int) -> None:
    """Raise RoleError for more pairs than anybody steers by: each has a cache for every row."""
    if num_pairs > _MAX_PAIRS:
        raise RoleError(f"there are {num_pairs} pairs of expert and anti: pass at most {_MAX_PAIRS}.")


def _remote_settings(source: Any, name: str, base_url: str | None) -> RemoteSettings:
    """Return the settings of a base behind an API, from themselves or from its name and `base_url`.

    Raises:
        RoleError: It is no base, or has no URL, or two.
    """
    if name != "base":
        raise RoleError(
            f"{name} is {str(source)!r}: only the base may be behind an API, for the small models run at every token "
            "and draft, with all their logits; pass a hub id or a folder."
        )
    if isinstance(source, RemoteSettings):
        if base_url not in (None, source.base_url):
            raise RoleError(f"base_url is {base_url!r}, and the base's own settings say {source.base_url!r}: pass one.")
        return source
    model = remote_model_name(source)
    if not model:
        raise RoleError(f"base is {source!r}: name the model as its server does, as in 'openai:my-model'.")
    if not base_url:
        raise RoleError(
            f"base is {source!r} without a server: give its URL, base_url='http://localhost:8000/v1' (--base-url)."
        )
    return RemoteSettings(model=model, base_url=base_url)


def _has_adapter_config(source: str, revision: str | None) -> bool:
    """Return whether a folder or hub id holds an adapter rather than a model."""
    if Path(source).is_dir():
        return (Path(source) / _ADAPTER_CONFIG).is_file() and not (Path(source) / "config.json").is_file()
    if looks_local(source):
        return False
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        return find_adapter_config_file(source, revision=revision, **hub_arguments(source)) is not None
    except (OSError, ValueError):
        return False


def peft_config_of(model: Any) -> Any | None:
    """Return the config of the active adapter of a PeftModel, None of any other model."""
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "get_base_model"):
        return None
    return configs[model.active_adapter]
