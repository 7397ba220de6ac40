"""Checks of a model folder before a library opens it: regular files, bounded JSON, as many weights as asked for.

A damaged or hostile folder ends in one sentence here, where a library would hang, fill the memory or raise an error of
its own. Nothing is executed, and no weights are read.
"""

import json
import math
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxytune.errors import RoleError, RoleNotFoundError

_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_MAX_JSON_BYTES = 16_000_000  # of a config or an index; tokenizer.json may be longer
_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_FILE_SUFFIXES = (".json", ".safetensors", ".bin", ".model")
_LFS_POINTER = b"version https://git-lfs"
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")

# Counts that libraries turn into Python loops; several times what any published model has.
_MAX_COUNTS = (
    (re.compile(r"(^|_)n?_?layers?$"), 1_000),
    (re.compile(r"experts$"), 8_192),
    (re.compile(r"(heads|groups|codebooks|labels)$"), 65_536),
)
_MAX_BUFFER_ELEMENTS = 2**28
_MAX_PARAMETERS_PER_BYTE = 16  # of weights quantised on disk, several to a byte
_SLACK_PARAMETERS = 1_000_000  # up to which a config may ask for more than the files hold, and each tensor be named


def require_sound_files(folder: Path, name: str) -> None:
    """Raise unless every file of a folder is a regular one, and its JSON files hold objects of bounded size.

    Args:
        folder: Of a model, an adapter or a tokenizer.
        name: Of the role.

    Raises:
        RoleNotFoundError: A file is a link to nothing.
        RoleError: A device, a pipe, a file that is no JSON object, or a shard outside the folder.
    """
    for path in sorted(folder.iterdir()):
        _require_regular(path, name)
    for file in _JSON_FILES:
        if (folder / file).is_file():
            entry = read_json(folder / file, name)
            _require_token_ids(entry, f"{name} {str(folder / file)!r}")
            if file.endswith(".index.json"):
                _require_shards(folder, file, entry, name)
            elif entry.get("model_type") != "proxytune":  # whose counts are sums, and never read
                require_bounded_counts(entry, f"{name} {str(folder / file)!r}")
    for path in weight_files(folder):
        with path.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise RoleError(
                    f"{name} {str(path)!r} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder."
                )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        RoleError: It is too long, no JSON, or no object.
    """
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise RoleError(f"{name} {str(path)!r} has {size} bytes: a config has at most {_MAX_JSON_BYTES}; get it again.")
    try:
        entry = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RoleError(f"{name} {str(path)!r} cannot be loaded, as it is no JSON ({error}): get it again.") from error
    except OSError as error:
        raise RoleError(f"{name} {str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error
    if not isinstance(entry, dict):
        raise RoleError(f"{name} {str(path)!r} holds a {type(entry).__name__} and no JSON object: get it again.")
    return entry


def require_bounded_counts(config: Mapping[str, Any], where: str) -> None:
    """Raise RoleError for a count of layers, experts, heads or labels that no model has."""
    for key, value in _numbers(config):
        limit = next((limit for pattern, limit in _MAX_COUNTS if pattern.search(key)), None)
        if limit is not None and not -limit <= value <= limit:
            raise RoleError(f"{where} says {key}={value}: no model has more than {limit}; get it again.")


def require_plausible_size(model: Any, folder: Path, name: str, *, is_quantized: bool) -> None:
    """Raise RoleError where a model asks for far more than the weights in its folder hold.

    Args:
        model: On the meta device, built from the config.
        folder: With the weights.
        name: Of the role.
        is_quantized: Weights are quantised on disk, so that several share a byte.
    """
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    held = _num_held(folder, name, is_quantized=is_quantized)
    if num_parameters > 2 * held + _SLACK_PARAMETERS:
        raise RoleError(
            f"{name} {str(folder)!r} has a config.json of {num_parameters:,} parameters and weights of {held:,}: its "
            "files belong to different models, or are cut off; get them again."
        )
    num_buffered = sum(buffer.numel() for buffer in model.buffers())
    if num_buffered > _MAX_BUFFER_ELEMENTS:
        raise RoleError(
            f"{name} {str(folder)!r} asks for buffers of {num_buffered:,} numbers: lower max_position_embeddings in "
            "its config.json."
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the files with weights, safetensors where there are any."""
    return next((files for pattern in _WEIGHT_PATTERNS if (files := sorted(folder.glob(pattern)))), [])


def safetensors_header(path: Path, name: str = "the model") -> dict[str, Any]:
    """Return name to dtype, shape and position of the tensors in a file, without reading them.

    Raises:
        RoleError: It is cut off or no safetensors file.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(_HEADER_LENGTH_BYTES))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header says that it is {length} bytes long")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            math.prod(entry["shape"])
    except (OSError, ValueError, struct.error, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise RoleError(
            f"{name} {str(path)!r} cannot be loaded, as it is no whole safetensors file ({error}): get it again."
        ) from error
    return header


def _require_regular(path: Path, name: str) -> None:
    """Raise for a link to nothing, and for what would never end or never answer when it is read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise RoleNotFoundError(
            f"{name} {str(path)!r} is a link that leads nowhere ({error.strerror}): get the file again."
        ) from error
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and path.suffix not in _FILE_SUFFIXES):
        raise RoleError(f"{name} {str(path)!r} is a folder, a device, a pipe or a socket, and not a file: remove it.")


def _require_shards(folder: Path, file: str, index: Mapping[str, Any], name: str) -> None:
    """Raise RoleError for an index whose shards are not files of the same folder."""
    shards = index.get("weight_map")
    where = f"{name} {str(folder / file)!r}"
    if not isinstance(shards, dict) or not shards:
        raise RoleError(f"{where} cannot be loaded, as it has no weight_map from tensors to files: get it again.")
    for shard in {str(shard): shard for shard in shards.values()}.values():
        if not isinstance(shard, str) or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise RoleError(f"{where} names the shard {shard!r}, which lies outside of its folder: get it again.")
        if not (folder / shard).is_file():
            raise RoleNotFoundError(f"{where} names the shard {shard!r}, and the folder has no such file: get it.")


def _require_token_ids(entry: Mapping[str, Any], where: str) -> None:
    """Raise RoleError for a special id that is no whole number, nor a list of such."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = entry.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int and -(2**31) <= index < 2**31 for index in ids):
            raise RoleError(f"{where} says {key}={value!r}: it must be a token id, or a list of such; get it again.")


def _numbers(entry: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int | float]]:
    """Yield every number of a config by its key, those of the configs in it too."""
    for key, value in entry.items():
        if isinstance(value, dict) and depth < 3:
            yield from _numbers(value, depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _num_held(folder: Path, name: str, *, is_quantized: bool) -> int:
    """Return how many numbers the weights in a folder can hold at most."""
    files = weight_files(folder)
    if is_quantized:
        return sum(path.stat().st_size for path in files) * _MAX_PARAMETERS_PER_BYTE
    if files and files[0].suffix == ".bin":
        return sum(path.stat().st_size for path in files)
    headers = [safetensors_header(path, name) for path in files]
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
