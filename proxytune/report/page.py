"""The page of traces: texts side by side, token by token."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from proxytune.report.builder import build
from proxytune.report.chart import HEIGHT, WIDTH, Chart, draw, highest
from proxytune.report.reading import TracedText
from proxytune.report.summary import summarise
from proxytune.trace import TokenTrace, Trace

_FOLDER = Path(__file__).parent
_LEVELS = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0)  # nats of KL(combined ‖ base), from which on a token is coloured so
_LONGEST_TOKEN = 200


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One text of a prompt, as the template shows it; `number` is its place in the page's data."""

    number: int
    heading: str
    text: str
    trace: Trace
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The texts of one prompt."""

    name: str | None
    prompt: str
    columns: tuple[_Column, ...]


def render(texts: Sequence[TracedText], *, title: str = "What steering did", origins: Sequence[str] = ()) -> str:
    """Return the page as HTML that loads nothing; the texts of one prompt stand side by side.

    `origins` are lines that say which models made the texts.
    """
    return build(
        _FOLDER,
        title=title,
        filters={"number": _number, "percent": _percent, "level": _level, "label": _label, "short": _short},
        origins=origins,
        data=_json([_card_data(text.trace) for text in texts]),
        summaries=summarise(texts),
        groups=_groups(texts),
        levels=_legend(),
        width=WIDTH,
        height=HEIGHT,
    )


def _groups(texts: Sequence[TracedText]) -> list[_Group]:
    numbers_by_prompt: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        numbers_by_prompt.setdefault(json.dumps([text.name, text.prompt]), []).append(number)
    groups = []
    for numbers in numbers_by_prompt.values():
        top = highest([texts[number].trace for number in numbers])
        columns = tuple(
            _Column(
                number=number,
                heading=_heading(texts[number]),
                text=texts[number].trace.text,
                trace=texts[number].trace,
                chart=draw(texts[number].trace, top),
            )
            for number in numbers
        )
        first = texts[numbers[0]]
        groups.append(_Group(name=first.name, prompt=_prompt(first.prompt), columns=columns))
    return groups


def _heading(text: TracedText) -> str:
    return f"α = {text.strength}" + ("" if text.seed is None else f", seed {text.seed}")


def _prompt(prompt: Any) -> str:
    """Return a prompt to be read: messages with their roles, token ids as numbers."""
    if isinstance(prompt, str):
        return prompt
    if all(isinstance(item, int) for item in prompt):
        return "token ids " + " ".join(map(str, prompt))
    return "\n\n".join(
        f"{item.get('role')}: {item.get('content')}" if isinstance(item, dict) else str(item) for item in prompt
    )


def _card_data(trace: Trace) -> dict[str, Any]:
    """Return what the script needs of a trace to fill the card of a token."""
    row = trace.row()
    return {
        "distributions": row["distributions"],
        "pairs": row["pairs"],
        "tokens": [
            {key: value for key, value in token.items() if key not in ("text", "candidates")}
            | {
                "candidates": [
                    [
                        candidate["token_id"],
                        _short(candidate["text"]),
                        *(candidate[name] for name in trace.distributions),
                    ]
                    for candidate in token["candidates"]
                ]
            }
            for token in row["tokens"]
        ],
    }


def _label(token: TokenTrace) -> str:
    """Return what a screen reader says of a token."""
    choice = f"changed, the base would take “{_short(token.base_choice.text)}”" if token.is_changed else "not changed"
    return f"“{_short(token.chosen.text)}”: {choice}; KL {_number(token.kl_combined_base)}"


def _short(text: str) -> str:
    """Return a token's text, cut where nobody would read on."""
    return text if len(text) <= _LONGEST_TOKEN else f"{text[:_LONGEST_TOKEN]}…"


def _level(token: TokenTrace) -> int:
    """Return how far steering moved a token, from 0 to the number of levels."""
    return sum(token.kl_combined_base >= least for least in _LEVELS)


def _legend() -> list[str]:
    ends = [f"{value:g}" for value in _LEVELS]
    return [f"< {ends[0]}", *(f"{low}–{high}" for low, high in pairwise(ends)), f"≥ {ends[-1]}"]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "∞"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _json(value: Iterable[Any]) -> Markup:
    """Return JSON that can stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))
