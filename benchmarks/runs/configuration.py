"""`config.json`: what a run was asked, with a fingerprint of it, and every session that worked on it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs.plan import Shard
from proxytune.errors import InputError, OptionError, OutputError

NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What decides a run's predictions.

    Attributes:
        task: Its name.
        settings: Everything else, as JSON has it: data, models, α, formats, dtype, limits, batch size, seed.
        columns: Names, in order.
        sizes: Number of questions of each part, in order.
        chunk_size: Questions in one call.
        shard: Which share this folder holds.
        sessions: What each process that worked on it ran with; not part of the fingerprint.
    """

    task: str
    settings: Mapping[str, Any]
    columns: Sequence[str]
    sizes: Mapping[str, int]
    chunk_size: int
    shard: Shard = Shard()  # noqa: RUF009 - frozen
    sessions: Sequence[Mapping[str, Any]] = ()

    @property
    def whole(self) -> dict[str, Any]:
        """What shards of one run share."""
        asked = {
            "task": self.task,
            "columns": list(self.columns),
            "sizes": dict(self.sizes),
            "chunk_size": self.chunk_size,
            "settings": self.settings,
        }
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what shards of one run share."""
        return hashlib.sha256(json.dumps(self.whole, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **self.whole,
            "shard": str(self.shard),
            "fingerprint": self.fingerprint,
            "sessions": list(self.sessions),
        }

    def write(self, folder: Path) -> None:
        """Put config.json into the folder in one step."""
        write_json(folder / NAME, self.as_dict())

    @classmethod
    def read(cls, folder: Path) -> Configuration:
        """Return what config.json says.

        Raises:
            InputError: There is none, or it is not one.
        """
        path = folder / NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                task=found["task"],
                settings=found["settings"],
                columns=found["columns"],
                sizes=found["sizes"],
                chunk_size=found["chunk_size"],
                shard=Shard.parse(found["shard"]),
                sessions=found["sessions"],
            )
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror}; name the folder of a run.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{str(path)!r} is not the config of a run ({error}): name the folder of a run."
            ) from error

    def require_same(self, other: Configuration, where: Path) -> None:
        """Raise OptionError naming what differs unless `other`, found in `where`, asks for the same, shard included."""
        mine, found = ({**one.whole, "shard": str(one.shard)} for one in (self, other))
        different = differences(found, mine)
        if different:
            raise OptionError(
                f"{str(where)!r} holds a run of another configuration: {'; '.join(different[:4])}. "
                "Give the same options, or take another --output folder."
            )


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Return what differs between two JSON values, one text per place.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    ['a.b is 1 there and 2 here', 'c is absent there and 3 here']
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            text
            for key in dict.fromkeys([*first, *second])
            for text in differences(first.get(key, ...), second.get(key, ...), f"{name}.{key}" if name else key)
        ]
    return [] if first == second else [f"{name} is {_shown(first)} there and {_shown(second)} here"]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a killed process leaves the old one or the new one.

    Raises:
        OutputError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        scratch.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    text = "absent" if value is ... else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
