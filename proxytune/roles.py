"""Loading base, expert and anti from what the user gave: a hub id, a folder, a loaded model, or an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from proxytune.errors import DependencyError, OptionError, RoleError, RoleNotFoundError, UnknownOptionError
from proxytune.options import check_alpha
from proxytune.remote.settings import RemoteSettings, remote_model_name

QUANTIZATIONS = ("4bit", "8bit")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_ADAPTER_CONFIG = "adapter_config.json"
_LOADING = (
    "dtype",
    "device_map",
    "quantization",
    "revision",
    "trust_remote_code",
    "trust_adapter_base",
    "model_kwargs",
)


@dataclass(frozen=True)
class Role:
    """One of base, expert and anti, and how to load it.

    Attributes:
        source: Hub id, local folder, a loaded model, or (for an expert) a peft adapter or `PeftModel` over its anti.
            Of a base behind an API its `RemoteSettings`; then nothing below may be given.
        dtype: `"bfloat16"`, a torch dtype, or `"auto"` (what the weights are stored in).
        device_map: As in transformers; None is the first GPU, or the CPU.
        quantization: `"4bit"` or `"8bit"` (bitsandbytes), a transformers quantisation config, or its dict. A model that
            is quantised on disk needs nothing here.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model. Never stored in a proxy folder.
        trust_adapter_base: Take an adapter even though it names another base than the anti (its folder moved).
        model_kwargs: Anything else for transformers' `from_pretrained`, `attn_implementation` for instance.
    """

    source: Any
    dtype: Any = None
    device_map: Any = None
    quantization: Any = None
    revision: str | None = None
    trust_remote_code: bool = False
    trust_adapter_base: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.quantization, str) and self.quantization not in QUANTIZATIONS:
            raise OptionError(f"quantization is {self.quantization!r}: it must be one of {', '.join(QUANTIZATIONS)}.")
        if isinstance(self.dtype, str) and self.dtype not in _DTYPES:
            raise OptionError(f"dtype is {self.dtype!r}: it must be float32, float16, bfloat16 or auto.")
        if self.is_remote:
            given = next((name for name in _LOADING if getattr(self, name) not in (None, False, {})), None)
            if given is not None:
                raise OptionError(
                    f"{given} was given for a base behind an API, which is loaded by its server: leave it out there."
                )

    @classmethod
    def of(cls, source: Any, name: str, *, base_url: str | None = None, **defaults: Any) -> "Role":
        """Return `source` as a Role, filling what it leaves open from `defaults`.

        Args:
            source: What `Role.source` may be, or a Role; `"openai:<model>"` is a base behind an API.
            name: base, expert, anti or draft.
            base_url: Of that API.
            **defaults: How models are loaded; a base behind an API is not, and takes none of them.

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
        """Whether the source is a model behind an API."""
        return isinstance(self.source, RemoteSettings)

    @property
    def is_loaded(self) -> bool:
        """Whether the source is a model rather than the name of one."""
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
        peft_config = _peft_config(self.source)
        return str(self.source.name_or_path or "") if peft_config is None else ""

    @property
    def is_adapter(self) -> bool:
        """Whether this is a peft adapter over another model."""
        if self.is_remote:
            return False
        if self.is_loaded:
            return _peft_config(self.source) is not None
        return _has_adapter_config(str(self.source), self.revision)


@dataclass(frozen=True)
class Pair:
    """An expert and its anti, whose difference steers with strength `alpha`.

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
        Role.of(expert, "expert")
        Role.of(anti, "anti")
        return [Pair(expert, anti, check_alpha(alpha))]
    if expert is not None or anti is not None:
        raise UnknownOptionError("pass either expert and anti, or pairs, not both.")
    if alpha != 1.0:
        raise UnknownOptionError(f"alpha={alpha!r} with pairs: write it into each Pair(expert, anti, alpha).")
    if not pairs:
        raise RoleError("pairs is empty: pass at least one Pair(expert, anti).")
    return list(pairs)


def load_model(role: Role, name: str) -> Any:
    """Return the role's causal LM, in evaluation mode.

    Raises:
        RoleNotFoundError: The folder or its weights are not there.
        RoleError: It loads, but not as a causal LM; or transformers refused it.
        DependencyError: Quantisation without bitsandbytes.
    """
    if role.is_loaded:
        _require_weights_only(_peft_config(role.source), name)
        return role.source.eval()
    import torch
    from transformers import AutoModelForCausalLM

    require_files(role, name)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(role.source), **_load_kwargs(role))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RoleError(f"{name} {str(role.source)!r} cannot be loaded: {_first_sentence(error)}") from error
    return model.eval()


def load_adapter(role: Role, name: str, anti: Any, anti_role: Role, wrapper: Any = None) -> tuple[Any, str]:
    """Return the PeftModel that holds the expert's adapter, and the adapter's name in it.

    The adapter's layers go into `anti` itself, so the weights are held once; it keeps the dtype of its base (peft would
    make it float32). `wrapper` is the PeftModel already around this anti when several pairs share it.

    Raises:
        RoleError: The adapter belongs to another model than the anti, or is of a kind that adds prompt tokens.
    """
    from peft import PeftModel

    if role.is_loaded:
        _require_weights_only(_peft_config(role.source), name)
        if role.source.get_base_model() is not anti:
            raise RoleError(
                f"{name} is a PeftModel over another model object than the anti: "
                "pass anti=expert.get_base_model(), or both as folders."
            )
        return role.source.eval(), role.source.active_adapter
    if wrapper is None and getattr(anti, "peft_config", None):
        raise RoleError(
            f"the anti of {name} carries an adapter already, perhaps of another generator: pass the anti's folder, "
            "or load it anew."
        )
    options = {"revision": role.revision, "autocast_adapter_dtype": False}
    try:
        read_adapter_config(role, name, anti_role)
        if wrapper is None:
            wrapper = PeftModel.from_pretrained(anti, str(role.source), adapter_name=name, **options)
        else:
            wrapper.load_adapter(str(role.source), adapter_name=name, **options)
    except RoleError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RoleError(
            f"adapter {str(role.source)!r} does not fit the anti {anti_role.name_or_path!r}: {_first_sentence(error)}"
        ) from error
    return wrapper.eval(), name


def read_adapter_config(role: Role, name: str, anti: Role) -> Any:
    """Return the peft config of an expert's adapter that is not loaded.

    Raises:
        RoleError: It belongs to another model than the anti, or is of a kind that adds prompt tokens.
    """
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(role.source), revision=role.revision)
    _require_weights_only(config, name)
    _require_base(config.base_model_name_or_path, role, name, anti)
    return config


def load_tokenizer(role: Role) -> Any | None:
    """Return the role's own tokenizer, or None when it has none (an adapter, a model never saved or behind an API)."""
    from transformers import AutoTokenizer

    source = role.name_or_path
    if not source or role.is_remote:
        return None
    kwargs = {"revision": role.revision, "trust_remote_code": role.trust_remote_code}
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **kwargs)
    except (OSError, ValueError):
        return None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def require_files(role: Role, name: str) -> None:
    """Raise RoleNotFoundError early and plainly for a folder that is missing or empty of weights."""
    if role.is_loaded or role.is_remote or role.is_adapter:
        return
    path = Path(str(role.source))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RoleNotFoundError(f"{name} folder {str(path)!r} has no config.json: it is not a saved model.")
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise RoleNotFoundError(
                f"{name} folder {str(path)!r} has no weights (*.safetensors or *.bin): save the model there first."
            )
        return
    if looks_local(str(role.source)):
        raise RoleNotFoundError(f"{name} folder {str(role.source)!r} does not exist: check the path.")


def looks_local(source: str) -> bool:
    """Return whether a source is a folder: a hub id is "name" or "owner/name"."""
    return Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1


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


def _require_weights_only(config: Any, name: str) -> None:
    """Raise RoleError for an adapter that works by added prompt tokens; None is no adapter."""
    if config is not None and config.is_prompt_learning:
        raise RoleError(
            f"{name} is a {config.peft_type} adapter, which adds prompt tokens: use one that changes weights, as LoRA."
        )


def _require_base(named: str | None, role: Role, name: str, anti: Role) -> None:
    """Raise RoleError unless the adapter was trained over the anti."""
    if role.trust_adapter_base or not named:
        return
    wanted = anti.name_or_path
    is_same = named == wanted or (Path(named).exists() and Path(wanted).exists() and Path(named).samefile(wanted))
    if not is_same:
        raise RoleError(
            f"{name} {str(role.source)!r} is an adapter over {named!r}, but the anti is {wanted!r}: pass that model as "
            "anti, or Role(..., trust_adapter_base=True) if it is the same one under another name."
        )


def _load_kwargs(role: Role) -> dict[str, Any]:
    import torch

    device_map = role.device_map
    if device_map is None and torch.cuda.is_available():
        device_map = {"": 0}
    dtype = role.dtype if role.dtype is not None else "auto"
    kwargs = {
        "dtype": getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype,
        "device_map": device_map,
        "revision": role.revision,
        "trust_remote_code": role.trust_remote_code,
        **role.model_kwargs,
    }
    if role.quantization is not None:
        kwargs["quantization_config"] = _quantization_config(role)
    return {key: value for key, value in kwargs.items() if value is not None}


def _quantization_config(role: Role) -> Any:
    if not isinstance(role.quantization, str):
        return role.quantization
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise DependencyError(
            f"quantization={role.quantization!r} needs bitsandbytes: pip install 'proxytune[bnb]', or load without it."
        )
    if role.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, role.dtype) if isinstance(role.dtype, str) and role.dtype != "auto" else role.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute if isinstance(compute, torch.dtype) else torch.bfloat16,
    )


def _has_adapter_config(source: str, revision: str | None) -> bool:
    """Return whether a folder or hub id holds an adapter rather than a model."""
    if Path(source).is_dir():
        return (Path(source) / _ADAPTER_CONFIG).is_file() and not (Path(source) / "config.json").is_file()
    if looks_local(source):
        return False
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        return find_adapter_config_file(source, revision=revision) is not None
    except (OSError, ValueError):
        return False


def _peft_config(model: Any) -> Any | None:
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "get_base_model"):
        return None
    return configs[model.active_adapter]


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
