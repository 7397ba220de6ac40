"""Settings that fix the rows of an output file, kept beside it so that no run goes on with rows of another system."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxytune
from proxytune.errors import OutputError
from proxytune.options import GenerationOptions

if TYPE_CHECKING:
    from proxytune.cli.role_arguments import RoleChoice
    from proxytune.roles import Term

Settings = Mapping[str, Any]

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.gguf", "*.model", "*.jinja")
_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 8
# α and seed are fields of each row; the others change no token.
_FREE_OPTIONS = ("alpha", "seed", "batch_size", "progress", "stats")


def settings_of(choice: "RoleChoice", command: str, options: Mapping[str, Any] | None) -> Settings:
    """Return the models, formats and options that a command's rows depend on, as JSON has them.

    `options` are those of `generate`, None where nothing is generated.
    """
    formats = choice.formats
    pairs = [
        {
            "expert": _model(pair.expert),
            "anti": _model(pair.anti),
            "expert_prompt": pair.expert_prompt or formats["expert_prompt"],
            "anti_prompt": pair.anti_prompt or formats["anti_prompt"],
        }
        for pair in choice.pairs
    ]
    decoding = {} if options is None else asdict(GenerationOptions(**options))
    settings = {
        "command": command,
        "base": _model(choice.base),
        "base_prompt": formats["base_prompt"],
        "pairs": pairs,
        "rule": choice.rule,
        "tokenizer": None if choice.tokenizer is None else _named(choice.tokenizer),
        "eos_token_ids": choice.eos_token_ids,
        "runtime": choice.runtime,
        **{name: value for name, value in decoding.items() if name not in _FREE_OPTIONS},
    }
    return _as_json(settings)


def _as_json(settings: Settings) -> dict[str, Any]:
    """Return what a file gives back of these settings: lists in place of tuples."""
    copied: dict[str, Any] = json.loads(json.dumps(settings))
    return copied


def path_beside(output: Path) -> Path:
    """Return where the settings of an output file are kept."""
    return output.with_name(f"{output.name}.run.json")


def written(settings: Settings) -> str:
    """Return the settings as a file's text, with what made them and when."""
    made = {"proxytune": proxytune.__version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    return json.dumps({**made, "settings": settings}, indent=1, ensure_ascii=False) + "\n"


def require_same(output: Path, settings: Settings) -> None:
    """Raise OutputError unless the rows of `output` were made with these settings."""
    path = path_beside(output)
    way_out = "resume with the options that made the file, or replace it by --overwrite"
    try:
        # Options that are younger than the file had their defaults.
        stored = _as_json(asdict(GenerationOptions())) | json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"nothing tells with which models and options {str(output)!r} was made ({str(path)!r} is missing or "
            "damaged): replace the output by --overwrite, or choose another."
        ) from error
    difference = _difference(stored, settings, "")
    if difference is not None:
        raise OutputError(f"{str(output)!r} was made otherwise: {difference}; {way_out}.")


def _difference(stored: Any, present: Any, name: str) -> str | None:
    """Return the first setting that differs, in words."""
    if isinstance(stored, Mapping) and isinstance(present, Mapping):
        if "content" in stored and "content" in present and stored["content"] != present["content"]:
            return f"{name} was {stored['folder']!r} with other files, and is {present['folder']!r} now"
        for key in present:
            # A folder may have moved; its content tells.
            if key != "folder" and (nested := _difference(stored.get(key), present.get(key), key)) is not None:
                return nested
        return None
    if isinstance(stored, list) and isinstance(present, list) and len(stored) == len(present):
        differences = (_difference(*entries, name) for entries in zip(stored, present, strict=True))
        return next((difference for difference in differences if difference is not None), None)
    return None if stored == present else f"{name} was {stored!r}, and is {present!r} now"


def _model(role: "Term") -> dict[str, Any]:
    if isinstance(role, str):
        return {"source": role}
    if role.is_remote:
        return {"source": role.name_or_path, "top_logprobs": role.source.top_logprobs}
    quantization = role.quantization
    loading = {"dtype": str(role.dtype or "auto"), "quantization": quantization, "revision": role.revision}
    loading["gguf_file"] = role.gguf_file
    return _named(role.name_or_path) | loading


def _named(source: str) -> dict[str, Any]:
    folder = Path(source).expanduser()
    return {"folder": str(folder.resolve()), "content": _digest(folder)} if folder.is_dir() else {"source": source}


def _digest(folder: Path) -> str:
    """Return a digest of a model folder: name and size of its files, and samples all over them."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            for number in range(_NUM_SAMPLES):
                stream.seek(number * max(0, size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
