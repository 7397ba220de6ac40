"""A chart of divergences over the places of a text, as numbers for an SVG: no drawing library, nothing loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from proxytune.trace import Trace

WIDTH, HEIGHT = 600, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 10, 22
_NICE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: its name, the SVG path, and its place among the line styles."""

    name: str
    path: str
    style: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over the tokens of one text.

    Attributes:
        series: KL(combined ‖ base) first, then KL(expert ‖ anti) of each pair.
        ticks: (height in the picture, label) of the vertical axis, in nats.
        places: Horizontal position of each token, left to right.
        description: The chart in words.
    """

    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    places: tuple[float, ...]
    description: str


def highest(traces: Sequence[Trace]) -> float:
    """Return a round number above every finite divergence of some texts, so that their charts share a scale."""
    values = [value for trace in traces for line in _lines(trace) for value in line[1] if math.isfinite(value)]
    top = max(values, default=0.0)
    if top <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(top))
    return next(unit * step for step in _NICE if unit * step >= top)


def draw(trace: Trace, top: float) -> Chart:
    """Return the chart of a text with `top` nats at its upper edge; infinity is drawn there."""
    count = len(trace.tokens)
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    positions = tuple(_LEFT + width * (index + 0.5) / max(count, 1) for index in range(count))

    def path(values: Sequence[float]) -> str:
        points = [
            f"{x:.1f} {_TOP + height * (1 - min(value, top) / top):.1f}"
            for x, value in zip(positions, values, strict=True)
        ]
        if len(points) == 1:  # a line of one point would not be seen
            points.append(f"{positions[0] + 0.1:.1f} {points[0].split()[1]}")
        return f"M{' L'.join(points)}" if points else ""

    lines = _lines(trace)
    return Chart(
        series=tuple(Series(name=name, path=path(values), style=style) for style, (name, values) in enumerate(lines)),
        ticks=tuple((_TOP + height * (1 - share), f"{top * share:g}") for share in (0.0, 0.5, 1.0)),
        places=positions,
        description=_described(lines[0][1]),
    )


def _lines(trace: Trace) -> list[tuple[str, list[float]]]:
    lines = [("KL(combined ‖ base)", [token.kl_combined_base for token in trace.tokens])]
    for number, (expert, anti) in enumerate(trace.pairs):
        lines.append((f"KL({expert} ‖ {anti})", [token.kl_expert_anti[number] for token in trace.tokens]))
    return lines


def _described(values: Sequence[float]) -> str:
    if not values:
        return "The text is empty."
    most = max(range(len(values)), key=values.__getitem__)
    return (
        f"KL(combined ‖ base) over {len(values)} tokens: {sum(values) / len(values):.3g} nats in the mean, most at "
        f"token {most + 1} with {values[most]:.3g}."
    )
