"""The contents of a report: a group for each base, in it systems (rows of models) and figures (measures of parts)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.reporting.source import Source

# Measures that say what answers are like, not how good they are: no gap is closed in them.
_DESCRIPTIVE = frozenset({"average length", "cut off", "words"})
_ORDER = {"base": 0, "expert": 1, "anti": 2, "steered": 3, "model": 4}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One score of one column, as metrics.json has it.

    Attributes:
        value: None where no row has a number.
        ci95: Its 95 % interval.
        n: Rows with a number.
        num_missing: Rows without.
        missing_are: Name of the rows without a number.
        run: Number of its run, from 1.
        seconds: Per question, where that was timed.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    num_missing: int
    missing_are: str
    run: int
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a column of runs."""

    name: str
    kind: str
    model: Mapping[str, Any]

    @property
    def alpha(self) -> float | None:
        """Strength of steering; 0 for the base, None for what is not steered or has pairs of different strength."""
        if self.kind == "base":
            return 0.0
        strengths = {pair["alpha"] for pair in self.model.get("pairs", ())} if self.kind == "steered" else set()
        return float(strengths.pop()) if len(strengths) == 1 else None

    @property
    def dtypes(self) -> str:
        """The dtype of each model it is made of; one word where they agree."""
        models = [
            self.model["base"],
            *(pair[role] for pair in self.model.get("pairs", ()) for role in ("expert", "anti")),
        ]
        precisions = [_precision(model) for model in models]
        return precisions[0] if len(set(precisions)) == 1 else " / ".join(precisions)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column of the table: one measure of one part, asked under one configuration.

    Attributes:
        task: The task's name.
        part: The part's.
        measure: The measure's.
        runs: Numbers of the runs that it is made of; their configurations differ in models alone.
        is_headline: True if it is its part's first score, which counts in the mean gap.
        is_better_higher: True if higher is better.
        batch_size: Most rows in one batch.
        runtime: hf or vllm.
        size: Questions of the complete part.
        chance: The score of guessing, where that means something.
        judging: Who judged it by `bench alpacaeval-judge`, as JSON.
        cells: By row.
    """

    task: str
    part: str
    measure: str
    runs: tuple[int, ...]
    is_headline: bool
    is_better_higher: bool
    batch_size: int
    runtime: str
    size: int
    chance: float | None = None
    judging: str = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Part and measure."""
        return f"{self.part} {self.measure}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs on one base.

    Attributes:
        base: Its description in config.json; None for runs without one.
        rows: By key, in the papers' order.
        figures: In the order of the runs.
        runs: Their numbers.
    """

    base: Mapping[str, Any] | None
    rows: Mapping[str, Row]
    figures: Sequence[Figure]
    runs: Sequence[int]

    @property
    def title(self) -> str:
        """The base's name and dtype."""
        return "without a base" if self.base is None else f"{model_name(self.base)} ({_precision(self.base)})"


def groups_of(sources: Sequence[Source]) -> list[Group]:
    """Return the table: a group per base, each run in one; runs without a base join the only group, if there is one."""
    bases = [_base(source) for source in sources]
    known = list(dict.fromkeys(_key(base) for base in bases if base is not None))
    keys = [_key(base) if base is not None or len(known) != 1 else known[0] for base in bases]
    return [
        _group([(number, source) for number, source in enumerate(sources, 1) if keys[number - 1] == key])
        for key in dict.fromkeys(keys)
    ]


def model_name(identity: Mapping[str, Any]) -> str:
    """Return a model's hub id, with its revision, or its folder with the start of its digest.

    >>> model_name({"folder": "base", "sha256": "3a9dffa5d654"})
    'base@3a9dffa5'
    """
    if "hub_id" in identity:
        revision = identity.get("commit") or identity.get("revision")
        return f"{identity['hub_id']}@{revision[:8]}" if revision else str(identity["hub_id"])
    return f"{identity.get('folder')}@{str(identity.get('sha256'))[:8]}"


def _group(numbered: Sequence[tuple[int, Source]]) -> Group:
    rows: dict[str, Row] = {}
    figures: dict[str, Figure] = {}
    for number, source in numbered:
        for column in source.configuration.columns:
            row = Row(name=column, kind=source.models[column]["kind"], model=source.models[column])
            rows.setdefault(_row_key(source, column), row)
        for figure in _figures(number, source):
            _place(figures, _figure_key(source, figure), figure)
    ordered = sorted(rows.items(), key=lambda item: (_ORDER.get(item[1].kind, 9), item[1].alpha or 0.0))
    base = next((base for _, source in numbered if (base := _base(source)) is not None), None)
    return Group(base=base, rows=dict(ordered), figures=list(figures.values()), runs=[number for number, _ in numbered])


def _place(figures: dict[str, Figure], key: str, figure: Figure) -> None:
    """Add a run's figure: to one of the same configuration that has none of its rows, else as another."""
    attempt = 0
    while (existing := figures.get(f"{key}{attempt}")) is not None and existing.cells.keys() & figure.cells.keys():
        attempt += 1
    if existing is None:
        figures[f"{key}{attempt}"] = figure
    else:
        joined = {**existing.cells, **figure.cells}
        figures[f"{key}{attempt}"] = replace(existing, cells=joined, runs=(*existing.runs, *figure.runs))


def _figures(number: int, source: Source) -> Iterator[Figure]:
    judged = {name for judging in source.judgings for name in _measures(judging.metrics["results"])}
    yield from _figures_of(number, source, source.metrics["results"], without=judged)
    for judging in source.judgings:
        yield from _figures_of(number, source, judging.metrics["results"], judging=judging.description)
        controlled = _controlled(judging.metrics)
        yield from _figures_of(number, source, controlled, judging=judging.description, is_minor=True)


def _figures_of(
    number: int,
    source: Source,
    results: Sequence[Mapping[str, Any]],
    *,
    judging: Mapping[str, Any] | None = None,
    without: set[tuple[str, str]] | None = None,
    is_minor: bool = False,
) -> Iterator[Figure]:
    settings = source.configuration.settings
    suffix = f" (judge {(judging['judge'] or {}).get('model')})" if judging else ""
    seen: set[str] = set()
    for part, measure in _measures(results):
        if without and (part, measure) in without:
            continue
        is_headline = part not in seen and measure not in _DESCRIPTIVE and not is_minor
        if is_headline:
            seen.add(part)
        selected = [result for result in results if (result["part"], result["measure"]) == (part, measure)]
        yield Figure(
            task=source.task,
            part=part,
            measure=measure + suffix,
            runs=(number,),
            is_headline=is_headline,
            is_better_higher=selected[0]["is_better_higher"],
            batch_size=settings["batch_size"],
            runtime=settings["runtime"],
            size=source.configuration.sizes[part],
            chance=selected[0].get("chance"),
            judging=_key(judging) if judging else "",
            cells={_row_key(source, result["column"]): _cell(number, source, result) for result in selected},
        )


def _measures(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((result["part"], result["measure"]) for result in results))


def _controlled(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return AlpacaEval's length-controlled rates, which are in per cent, as shares like all else."""
    rates = []
    part = metrics["results"][0]["part"]
    for column, score in metrics.get("scores", {}).items():
        rate = score["metrics"].get("length_controlled_win_rate")
        if rate is not None and rate["value"] is not None:
            low, high = rate.get("low"), rate.get("high")
            rates.append(
                {
                    "part": part,
                    "measure": "length-controlled win rate",
                    "column": column,
                    "is_better_higher": True,
                    "value": rate["value"] / 100,
                    "ci95": None if low is None or high is None else (low / 100, high / 100),
                    "n": rate["n"],
                    "num_missing": score["n"] - rate["n"],
                    "missing_are": "without verdict",
                }
            )
    return rates


def _cell(number: int, source: Source, result: Mapping[str, Any]) -> Cell:
    cost = source.costs.get((result["column"], result["part"]))
    return Cell(
        value=result["value"],
        ci95=None if result["ci95"] is None else tuple(result["ci95"]),
        n=result["n"],
        num_missing=result["num_missing"],
        missing_are=result["missing_are"],
        run=number,
        seconds=None if cost is None else cost.seconds_per_question,
    )


def _base(source: Source) -> Mapping[str, Any] | None:
    models = (source.models[column] for column in source.configuration.columns)
    base: Mapping[str, Any] | None = next(
        (model["base"] for model in models if model["kind"] in ("base", "steered")), None
    )
    return base


def _row_key(source: Source, column: str) -> str:
    model = source.models[column]
    # One steered column is called plainly, several by their strength: the models and the strength tell them apart.
    return _key(model if model["kind"] != "model" else [column, model])


def _figure_key(source: Source, figure: Figure) -> str:
    """Return what must be equal for scores to stand in one column: everything but the models."""
    settings = {key: value for key, value in source.configuration.settings.items() if key != "models"}
    asked = [figure.task, figure.part, figure.measure, figure.size, settings, round(source.share, 6)]
    return _key([*asked, source.judges, figure.judging])


def _precision(model: Mapping[str, Any]) -> str:
    return " ".join(str(model[key]) for key in ("dtype", "quantization") if model.get(key)) or "dtype unknown"


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
