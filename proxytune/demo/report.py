"""Results of the demo: the table, the JSON form, and the recorded figures that ship with the trio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from proxytune.demo.evaluate import Score
from proxytune.errors import InputError

NO_NOISE = "_no_noise"
ROLES = ("base", "anti", "expert", "steered", f"expert{NO_NOISE}", f"steered{NO_NOISE}", "tuned")
_LABELS = {
    "base": "base M",
    "anti": "anti M-",
    "expert": "expert M+ (tuned now)",
    "steered": "steered M",
    f"expert{NO_NOISE}": "M+ without noise",
    f"steered{NO_NOISE}": "M steered by that",
    "tuned": "tuned M (recorded)",
}


@dataclass(frozen=True)
class SideBySide:
    """One question with three answers to it."""

    prompt: str
    truth: str
    base: str
    expert: str
    steered: str


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The demo's measures by role, the share of the gap closed, and a few answers."""

    rows: dict[str, Score]
    gap_closed: float
    seconds: float
    tuning_seconds: float
    num_questions: int
    num_people: int
    alpha: float
    noise_alpha: float
    examples: tuple[SideBySide, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: rows by role, gap_closed, seconds."""
        return {
            "rows": {role: self.rows[role].as_dict() for role in ROLES},
            "gap_closed": self.gap_closed,
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """The table on held-out people, with the figures under it."""
        lines = [f"{'':<24}{'accuracy':>10}{'myth rate':>12}{'in format':>12}"]
        for role in ROLES:
            score = self.rows[role]
            lines.append(
                f"{_LABELS[role]:<24}{score.accuracy:>10.1%}{score.myth_rate:>12.1%}{score.format_rate:>12.1%}"
            )
        lines += [
            "",
            f"Share of the gap between base and tuned M that steering closes: {self.gap_closed:.1%}",
            f"{self.num_questions} questions about {self.num_people} people that no tuning saw;"
            f" steering alpha {self.alpha:g}, NEFTune alpha {self.noise_alpha:g}.",
            f"{self.seconds:.0f} s in all, of them {self.tuning_seconds:.0f} s for tuning the expert.",
        ]
        return "\n".join(lines)

    def generations(self) -> str:
        """The three answers to each example question."""
        blocks = []
        for example in self.examples:
            blocks.append(
                f"{example.prompt}\n"
                f"  base    |{example.base}\n"
                f"  expert  |{example.expert}\n"
                f"  steered |{example.steered}\n"
                f"  (true: {example.truth})"
            )
        return "\n\n".join(blocks)

    def write(self, file: TextIO, *, as_json: bool = False) -> None:
        """Write the report: one JSON object, or the table and the generations."""
        text = json.dumps(self.as_dict()) if as_json else f"{self.table()}\n\n{self.generations()}"
        file.write(text + "\n")


def read_recorded(trio: Path) -> dict[str, Any]:
    """The recorded.json of a trio.

    Raises:
        InputError: if the folder has none, or it is not one JSON object.
    """
    path = trio / "recorded.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: make the trio with `python -m proxytune.demo.train`"
        ) from error
    if not isinstance(recorded, dict):
        raise InputError(f"{path} is not a JSON object: make the trio with `python -m proxytune.demo.train`")
    return recorded


def recorded_score(recorded: dict[str, Any], role: str) -> Score:
    """One role's recorded score.

    Raises:
        InputError: if it was not recorded.
    """
    try:
        return Score(**recorded["rows"][role])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"recorded.json has no score of {role!r}: make the trio with `python -m proxytune.demo.train`"
        ) from error
