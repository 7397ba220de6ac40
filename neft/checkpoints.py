"""Checkpoints of an unfinished run: beside the output, each whole or absent, the last few kept.

`<output>.partial/` holds the log, the best weights and `checkpoint-<step>/` folders. A checkpoint is written as
`.writing/` and renamed when it is complete, and holds no file that loads as a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from neft.errors import OutputError

STATE_FILE = "neft_run.json"
WEIGHTS_FILE = "trained.safetensors"
BEST_FILE = "best.safetensors"
_PREFIX = "checkpoint-"
_STAGING = ".writing"


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a run, and what neft knows of it beyond the Trainer's own files."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.folder.name.removeprefix(_PREFIX))


class CheckpointStore:
    """The checkpoints of one output folder."""

    def __init__(self, output: Path, *, keep: int = 1) -> None:
        """Touches nothing; `keep` is how many checkpoints stay."""
        self.output = output
        target = output.resolve()
        self.folder = target.with_name(f"{target.name}.partial")
        self.keep = keep

    @property
    def staging(self) -> Path:
        """The folder of a checkpoint that the Trainer has not completed."""
        return self.folder / _STAGING

    @property
    def best(self) -> Path:
        """The best weights so far."""
        return self.folder / BEST_FILE

    def checkpoints(self) -> list[Path]:
        """Returns the complete checkpoints, the newest last."""
        folders = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / STATE_FILE).is_file()]
        return sorted(folders, key=lambda path: int(path.name.removeprefix(_PREFIX)))

    def open(self) -> None:
        """Makes the folder for a run, without the leavings of a killed one.

        Raises:
            OutputError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.staging, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"output {self.output} cannot be made ({self.folder}: {error.strerror}).") from error

    def commit(self, step: int, state: Mapping[str, Any], *, files: tuple[Path, ...]) -> None:
        """Makes what the Trainer wrote for a step a checkpoint, and removes the ones that are too old.

        The files (log, best weights) go into it as they are now, so a checkpoint needs nothing beside it.
        """
        written = self.staging / f"{_PREFIX}{step}"
        for path in files:
            if path.exists():
                _link_or_copy(path, written / path.name)
        (written / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        target = self.folder / written.name
        shutil.rmtree(target, ignore_errors=True)
        written.replace(target)
        for old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self, identity: Mapping[str, Any]) -> Checkpoint | None:
        """Returns the newest checkpoint, or None if there is none.

        Raises:
            OutputError: it is of another run; the message names what differs.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        folder = checkpoints[-1]
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            recorded = state["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"checkpoint {folder} cannot be read ({error}); remove {self.folder}.") from error
        differences = differing(recorded, identity)
        if differences:
            raise OutputError(
                f"checkpoint {folder} is of another run: {'; '.join(differences)}. "
                "Give the options it was made with, or start anew with --overwrite instead of --resume."
            )
        return Checkpoint(folder, state)

    def restore(self, checkpoint: Checkpoint, *names: str) -> None:
        """Puts files of a checkpoint back to where the run works on them."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            if (checkpoint.folder / name).exists():
                shutil.copyfile(checkpoint.folder / name, self.folder / name)

    def remove(self) -> None:
        """Removes everything, after a run that ended well."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_useless(self) -> None:
        """Removes everything if there is no checkpoint to go on from."""
        if not self.checkpoints():
            self.remove()
        shutil.rmtree(self.staging, ignore_errors=True)


def differing(recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each entry that differs, with the name of the option, in nested mappings too.

    >>> differing({"config": {"alpha": 5.0, "seed": 0}}, {"config": {"alpha": 1.0, "seed": 0}})
    ['alpha was 5.0 and is 1.0']
    """
    phrases = []
    for name in sorted({*recorded, *requested}):
        was, now = recorded.get(name), requested.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            prefix = "checksum of data " if name == "data" else ""
            phrases += [prefix + phrase for phrase in differing(was, now)]
        elif was != now:
            phrases.append(f"{name} was {was!r} and is {now!r}".replace("'", ""))
    return phrases


def save_trained(model: nn.Module, path: Path, *, is_writer: bool = True) -> None:
    """Writes the trainable parameters, whole or not at all.

    Sharded parameters are gathered, so every process calls this; only the writer writes.
    """
    tensors = {name: full(parameter) for name, parameter in _trainable(model).items()}
    if not is_writer:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    try:
        save_file(tensors, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@torch.no_grad()
def load_trained(model: nn.Module, path: Path) -> None:
    """Copies saved parameters into a model; every one of them must be there.

    Raises:
        OutputError: the file is not of this model.
    """
    saved = load_file(path)
    parameters = _trainable(model)
    if saved.keys() != parameters.keys():
        names = ", ".join(sorted(saved.keys() ^ parameters.keys())[:3])
        raise OutputError(f"{path} is not of this model: {names} is in one of them only.")
    for name, parameter in parameters.items():
        tensor = saved[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
        parameter.copy_(tensor)


def full(tensor: Tensor) -> Tensor:
    """Returns a full tensor on the CPU; of a sharded one, every process must ask."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.to("cpu").contiguous()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)  # the log grows on
        return
    try:
        os.link(source, target)  # replaced as a whole by its writer, so the link keeps what it is now
    except OSError:
        shutil.copyfile(source, target)
