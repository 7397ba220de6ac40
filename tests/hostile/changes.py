"""Ways to damage one file of a saved folder."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], Any]

BAD_JSON: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"model_type": "lla',
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "not utf-8": b"\xff\xfe{}",
    "nested": b"[" * 100_000,
    "a page": b"<!DOCTYPE html><html>Not found</html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
    "nan": b'{"model_type": NaN}',
    "zeros": bytes(4096),
}
BAD_WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"not weights",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "long header": struct.pack("<Q", 10**9) + b"{}",
    "header is a list": struct.pack("<Q", 2) + b"[]",
    "header is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "no tensors": struct.pack("<Q", 2) + b"{}",
    "negative shape": b"",
    "zeros": bytes(4096),
}


def edited(file: str, **entries: Any) -> Change:
    """Return a change of entries of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def written(file: str, data: bytes) -> Change:
    """Return a change of a file's bytes."""
    return lambda folder: (folder / file).write_bytes(data)


def removed(*files: str) -> Change:
    """Return a change that deletes files."""
    return lambda folder: [(folder / file).unlink() for file in files]


def in_turn(*changes: Change) -> Change:
    """Return several changes as one."""
    return lambda folder: [change(folder) for change in changes]


def replaced(file: str, make: Callable[[Path], Any]) -> Change:
    """Return a change that makes something else of a file."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def weights(change_tensors: Callable[[dict[str, Any]], Any], file: str = "model.safetensors") -> Change:
    """Return a change of the tensors in a file."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        change_tensors(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


def sharded(**weight_map: Any) -> Change:
    """Return a change that puts an index in the place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


class Payload:
    """What a pickle must not run."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOSTILE_MARK"],)


def pickled(make: Callable[[Path], Any], stem: str = "pytorch_model", safe: str = "model.safetensors") -> Change:
    """Return a change that puts a pickle in the place of safetensors."""
    return in_turn(removed(safe), lambda folder: make(folder / f"{stem}.bin"))


def other_names(tensors: dict[str, Any]) -> None:
    """Rename every tensor."""
    for key in [*tensors]:
        tensors[f"x.{key}"] = tensors.pop(key)


def other_shapes(tensors: dict[str, Any], part: str = "") -> None:
    """Give every tensor with `part` in its name another shape."""
    for key in tensors:
        if part in key:
            tensors[key] = torch.zeros(3, 5)


def without(tensors: dict[str, Any], part: str) -> None:
    """Drop every tensor with `part` in its name."""
    for key in [*tensors]:
        if part in key:
            tensors.pop(key)


SPECIAL_FILES: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": Path.mkdir,
}
PICKLES: dict[str, Callable[[Path], Any]] = {
    "code": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "code in torch's format": lambda path: torch.save({"a": Payload()}, path),
    "a module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "a list": lambda path: torch.save([torch.zeros(2)], path),
    "text": lambda path: path.write_text("not a pickle"),
    "the first bytes": lambda path: path.write_bytes(b"PK\x03\x04 and nothing more"),
}
