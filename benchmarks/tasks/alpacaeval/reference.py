"""AlpacaEval's instructions and reference outputs: files in its own format, byte for byte as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring.rows import Row, read_rows, reject_doubles
from benchmarks.tasks.task import find_file
from proxytune.errors import InputError

# As the hub's dataset and the package's repository name them; the second version's first.
INSTRUCTIONS = (
    "alpaca_eval_gpt4_baseline.json",
    "gpt4_1106_preview.model_outputs.json",
    "alpaca_eval.json",
    "text_davinci_003.v1_reference.json",
)
REFERENCES = {2: INSTRUCTIONS[:2], 1: INSTRUCTIONS[2:]}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One of AlpacaEval's instructions, and the collection it comes from ("" where the file does not say)."""

    text: str
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Outputs that others are compared with.

    Attributes:
        generator: Who made them.
        outputs: By instruction.
        path: The file.
    """

    generator: str
    outputs: dict[str, str]
    path: Path


def read_instructions(path: Path) -> list[Instruction]:
    """Return the instructions of a file in AlpacaEval's format (.json, .jsonl, also .gz), in its order.

    Raises:
        InputError: It cannot be read, a row has no instruction or an empty one, or two have the same.
    """
    rows = _rows(path)
    return [Instruction(text=row.text("instruction"), dataset=str(row.fields.get("dataset") or "")) for row in rows]


def read_reference(path: Path) -> Reference:
    """Return the reference outputs of a file in AlpacaEval's format.

    Raises:
        InputError: It cannot be read, lacks instructions or outputs, or several generators made it.
    """
    rows = _rows(path)
    generators = sorted({row.text("generator") for row in rows})
    if len(generators) > 1:
        raise InputError(f"{path} holds outputs of {generators[0]!r} and {generators[1]!r}: name one reference's file.")
    outputs = {row.text("instruction"): row.text("output") for row in rows}
    return Reference(generator=generators[0], outputs=outputs, path=path)


def find(given: str | None, folder: str | None, names: Sequence[str], *, option: str) -> Path:
    """Return the file that was given, or the first of `names` in the folder, also below alpaca_eval/."""
    paths = [f"{below}{name}" for name in names for below in ("", "alpaca_eval/")]
    return find_file(given, folder, paths, option=option, data="AlpacaEval's instructions or outputs")


def _rows(path: Path) -> list[Row]:
    rows = read_rows(path)
    reject_doubles(rows, name="instruction")
    empty = next((row for row in rows if not row.text("instruction").strip()), None)
    if empty is not None:
        raise InputError(f"{empty.place}: the instruction is empty.")
    return rows
