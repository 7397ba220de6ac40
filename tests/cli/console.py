"""What one command line did, and what tests say about it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 160
SIZES = {"base": (3, 32, 4, 2), "expert": (2, 16, 2, 2), "anti": (2, 16, 2, 2)}  # layers, width, heads, kv heads


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSONL rows on standard output; anything else there is an error."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def assert_refused(result: Result, *parts: str) -> None:
    """The command ended as it does for a user's mistake: code 2, nothing on stdout, one sentence with these parts."""
    assert (result.code, result.out) == (2, "")
    lines = [line for line in result.err.splitlines() if "no roles were named" not in line]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("proxytune: ")
    for part in parts:
        assert part in lines[0]
