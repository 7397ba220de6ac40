"""Gap closed: how much of what direct tuning brings steering brings too (Liu et al. 2024, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.reporting.grid import Figure, Group
from benchmarks.reporting.source import Source
from proxytune.errors import OptionError

TUNED = "tuned"


@dataclass(frozen=True, kw_only=True)
class GapLine:
    """The gaps of one steered row.

    Attributes:
        row: Its key.
        gaps: By number of the figure in the group; None where tuning changes nothing. Figures without a score of base,
            steered and tuned are not there.
        uncertain: Numbers of the figures where the interval of tuned minus base holds 0.
        mean: Over the gaps, each counting alike; None where there is none, or a part has two.
        num_tasks: Number of gaps.
    """

    row: str
    gaps: Mapping[int, float | None]
    uncertain: frozenset[int]
    mean: float | None
    num_tasks: int


def gap_closed(*, base: float, steered: float, tuned: float) -> float | None:
    """Return (steered - base) / (tuned - base), a share; None where tuning changes nothing.

    >>> gap_closed(base=0.25, steered=0.5, tuned=0.75)
    0.5
    """
    return None if tuned == base else (steered - base) / (tuned - base)


def mean_gap(gaps: Iterable[float | None]) -> float | None:
    """Return the mean of the gaps that there are, each counting alike; None where there is none.

    >>> mean_gap([0.5, None, 1.0])
    0.75
    """
    present = [gap for gap in gaps if gap is not None]
    return sum(present) / len(present) if present else None


def tuned_row(group: Group, name: str | None = None) -> str | None:
    """Return the key of the directly tuned row: the one called so, `tuned` by default, else the only other model.

    Raises:
        OptionError: Several rows have that name.
    """
    tuned_name = name or TUNED
    named = [key for key, row in group.rows.items() if row.name == tuned_name]
    if len(named) > 1:
        raise OptionError(
            f"{len(named)} different models are called {tuned_name!r}: gap closed is against one. "
            "Report their runs apart."
        )
    others = [key for key, row in group.rows.items() if row.kind == "model"]
    if named:
        return named[0]
    return others[0] if name is None and len(others) == 1 else None


def gap_lines(group: Group, sources: Sequence[Source], *, tuned: str | None = None) -> list[GapLine]:
    """Return the gaps of each steered row against the row called `tuned`; none without such a row, or a base's."""
    top, bottom = tuned_row(group, tuned), base_row(group)
    if top is None or bottom is None:
        return []
    lines = []
    for key, row in group.rows.items():
        if row.kind != "steered":
            continue
        gaps = {number: gap for number, figure in enumerate(group.figures) for gap in _gaps(figure, bottom, key, top)}
        counted = [number for number, gap in gaps.items() if gap is not None]
        parts = {(group.figures[number].task, group.figures[number].part) for number in counted}
        lines.append(
            GapLine(
                row=key,
                gaps=gaps,
                uncertain=frozenset(
                    number for number in gaps if _is_uncertain(group, group.figures[number], sources, bottom, top)
                ),
                mean=mean_gap(gaps.values()) if len(parts) == len(counted) else None,
                num_tasks=len(counted),
            )
        )
    return lines


def _gaps(figure: Figure, base: str, steered: str, tuned: str) -> list[float | None]:
    """Return the gap in a list, which is empty where a score is missing or the measure only describes."""
    cells = [figure.cells.get(key) for key in (base, steered, tuned)]
    values = [cell.value for cell in cells if cell is not None and cell.value is not None]
    if not figure.is_headline or len(values) < len(cells):
        return []
    return [gap_closed(base=values[0], steered=values[1], tuned=values[2])]


def _is_uncertain(group: Group, figure: Figure, sources: Sequence[Source], base: str, tuned: str) -> bool:
    tuned_difference = difference(group, figure, sources, base, tuned)
    return tuned_difference is not None and tuned_difference.ci95[0] <= 0 <= tuned_difference.ci95[1]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second row minus first on the questions that both answered, with its 95 % interval."""

    value: float
    ci95: tuple[float, float]


def difference(
    group: Group, figure: Figure, sources: Sequence[Source], first: str | None, second: str
) -> Difference | None:
    """Return the paired difference of two rows, by key; None where they are of two runs, or one has no score."""
    cells = [figure.cells.get(key or "") for key in (first, second)]
    if cells[0] is None or cells[1] is None or cells[0].run != cells[1].run or first is None:
        return None
    names = [group.rows[key].name for key in (first, second)]
    for pair in sources[cells[0].run - 1].metrics.get("comparisons", ()):
        if (pair["part"], pair["measure"]) != (figure.part, figure.measure) or pair["ci95"] is None:
            continue
        low, high = pair["ci95"]
        if [pair["first"], pair["second"]] == names:
            return Difference(value=pair["difference"], ci95=(low, high))
        if [pair["second"], pair["first"]] == names:
            return Difference(value=-pair["difference"], ci95=(-high, -low))
    return None


def base_row(group: Group) -> str | None:
    """Return the key of the base's row."""
    return next((key for key, row in group.rows.items() if row.kind == "base"), None)
