"""Traces as `proxytune trace` wrote them, read back from JSON Lines."""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from proxytune.errors import InputError
from proxytune.prompts import Prompt
from proxytune.trace import Trace


@dataclass(frozen=True, kw_only=True)
class TracedText:
    """A trace and what it is of.

    Attributes:
        prompt: Text, chat messages, or token ids.
        trace: The trace.
        name: The row's "id", if it had one.
        seed: Of its draws, if it was drawn.
    """

    prompt: Prompt
    trace: Trace
    name: str | None = None
    seed: int | None = None

    @property
    def strength(self) -> str:
        """The strength of each pair, to be read: `1`, or `0.5, -1` for two pairs."""
        return ", ".join(f"{alpha:g}" for alpha in self.trace.alphas)


def read_traced_texts(path: str | Path) -> list[TracedText]:
    """Return the traces of a file, at least one; rows that ended with an error have none.

    Raises:
        InputError: The file cannot be read, or a line is no trace; the text names it.
    """
    path = Path(path).expanduser()
    texts = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line, parse_constant=_refused)
                if not (isinstance(row, Mapping) and "error" in row):
                    texts.append(_traced_text(row))
            except (ValueError, RecursionError) as error:  # an InputError too
                raise InputError(f"line {number} of {str(path)!r} cannot be used: {error}") from error
    if not texts:
        raise InputError(f"{str(path)!r} holds no trace: write some with `proxytune trace --output`.")
    return texts


def read_origin(path: str | Path) -> str | None:
    """Return which models made a file of traces, when and how, from what `proxytune trace` keeps beside it."""
    path = Path(path).expanduser()
    try:
        entry = json.loads(path.with_name(f"{path.name}.run.json").read_text(encoding="utf-8"))
        settings = entry["settings"]
        roles = {"base": settings["base"]}
        for number, pair in enumerate(settings["pairs"], 1):
            suffix = "" if len(settings["pairs"]) == 1 else f" {number}"
            roles |= {f"expert{suffix}": pair["expert"], f"anti{suffix}": pair["anti"]}
        named = [f"{name} {model.get('source') or Path(model['folder']).name}" for name, model in roles.items()]
        return f"{path.name}: {', '.join(named)}; rule {settings['rule'] or 'proxy'}; {entry['date'][:10]}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _refused(name: str) -> NoReturn:
    raise InputError(f"it holds {name}, which is no JSON number.")


def _lines(path: Path) -> Iterator[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as stream:
            yield from stream
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(path)!r}: {reason}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8: convert it first.") from error


def _traced_text(row: Any) -> TracedText:
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str | list):
        raise InputError("it is no object with a prompt: pass what `proxytune trace` wrote.")
    name, seed = row.get("id"), row.get("seed")
    return TracedText(
        prompt=row["prompt"],
        trace=Trace.from_row(row),
        name=None if name is None else name if isinstance(name, str) else json.dumps(name),
        seed=seed if isinstance(seed, int) else None,
    )
