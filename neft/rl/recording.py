"""The identity of a reward or policy run, and its record in `neft.json`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from neft.data import checksum
from neft.errors import InputError
from neft.output import check_output
from neft.recording import now, versions
from neft.rl.options import TuningOptions


def checked_identity(config: TuningOptions) -> dict[str, Any]:
    """Returns what makes a run the same run, after checking that it may write its output folder.

    Raises:
        InputError: there are several processes.
        DataError: a data file cannot be read.
        OutputError: the output folder is taken or would replace an input.
    """
    _require_one_process()
    identity = {
        "config": config.record(),
        "data": {name: checksum(path) for name, path in config.data_files.items()},
    }
    models = [getattr(config, name, None) for name in ("model", "reward", "ref")]
    inputs = [*config.data_files.values(), *(Path(model) for model in models if model is not None)]
    existing = [path for path in inputs if path.exists()]
    check_output(config.output, identity=identity, inputs=existing, overwrite=config.overwrite)
    return identity


def record_of(identity: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `neft.json`."""
    values = {name: value for name, value in result.items() if name != "output"}
    return {**identity, "result": values, "versions": versions(), "finished": now()}


def logged(history: list[dict[str, Any]], name: str) -> list[float]:
    """Returns the values that a run logged under a name, in order."""
    return [float(line[name]) for line in history if name in line]


def _require_one_process() -> None:
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise InputError(f"{num_processes} processes were started, but reward and rl runs use one; start them alone.")
