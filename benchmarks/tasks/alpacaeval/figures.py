"""From verdicts to figures: win rates as AlpacaEval has them, and paired comparisons between columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from benchmarks.measures import Measure, field, summarise
from benchmarks.scoring import alpacaeval
from benchmarks.scoring.rows import Row
from benchmarks.scoring.score import Metric, Score
from benchmarks.tables import table
from benchmarks.tasks.alpacaeval.annotations import Key
from benchmarks.tasks.alpacaeval.generation import TASK
from benchmarks.tasks.alpacaeval.length_control import LengthControl, controlled_rates
from benchmarks.tasks.alpacaeval.reference import Reference

MEASURES = {
    TASK: (
        Measure(name="win rate", value=field("win"), is_share=False, missing="without verdict"),
        Measure(name="average length", value=field("num_characters"), is_share=False, missing="without answer"),
    )
}
_NO_CONTROL = (
    "no length-controlled rate: it needs --df-gamed (the published form) or --instruction-difficulty (a fit without it)"
)
_MOST_REASONS = 3


def official_annotations(
    rows: Sequence[Mapping[str, Any]], known: Mapping[Key, Mapping[str, Any]], reference: Reference
) -> dict[str, list[dict[str, Any]]]:
    """Return by column what AlpacaEval's annotations.json holds, in the run's order; a missing `preference` is null."""
    by_column: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        verdict = known.get((row["column"], row["index"]), {})
        annotation = {
            "instruction": row["instruction"],
            "dataset": row["dataset"],
            "output_1": reference.outputs[row["instruction"]],
            "generator_1": reference.generator,
            "output_2": row["output"],
            "generator_2": row["column"],
            **verdict.get("annotation", {}),
            "preference": verdict.get("preference"),
        }
        # The package's newer name for it; scorers, and the published files, have the older.
        annotation["raw_completion"] = annotation.pop("preference_raw_completion", None)
        if "error" in verdict:
            annotation["error"] = verdict["error"]
        by_column.setdefault(row["column"], []).append(annotation)
    return by_column


def figures(
    annotations: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Mapping[str, Any]],
    *,
    control: LengthControl | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return `results` and `comparisons` (shares), AlpacaEval's own `scores` by column (per cent), and `notes`."""
    flat = chain.from_iterable(annotations.values())  # rows go column by column too
    judged = [{**row, "win": _win(annotation)} for row, annotation in zip(rows, flat, strict=True)]
    summary = summarise(judged, MEASURES, seed=seed)
    notes, scores = [_NO_CONTROL if control is None else f"length-controlled form: {control.form}"], {}
    controlled = {} if control is None else controlled_rates(annotations, control)
    for column, column_annotations in annotations.items():
        scored = alpacaeval.score(
            [Row(place=f"{column}, row {n}", fields=one) for n, one in enumerate(column_annotations, 1)]
        )
        metrics = dict(scored.metrics)
        if column in controlled:
            metrics["length_controlled_win_rate"] = controlled[column].metric
            reason = controlled[column].reason
            notes += [] if reason is None else [f"{column} has no length-controlled rate: {reason}"]
        scores[column] = _as_dict(scored, metrics)
    return {**summary, "scores": scores, "notes": [*notes, *_missing(annotations)]}


def report(found: Mapping[str, Any]) -> str:
    """Return the figures as text: the table, AlpacaEval's line for each column, differences, and who judged."""
    lines = [_line(column, score) for column, score in found["scores"].items()]
    lines += [_difference(pair) for pair in found["comparisons"] if pair["measure"] == "win rate" and pair["n"]]
    judge = found["judge"]
    lines += [
        f"judge: {judge['model']} at {judge['url']}, asked in the form {judge['form']!r} by alpaca-eval "
        f"{judge['alpaca_eval']}; against {found['reference']['generator']}.",
        *(f"{note}." for note in found["notes"]),
    ]
    return table(found) + "\n" + "".join(f"{line}\n" for line in lines)


def _missing(annotations: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return why verdicts are missing, the commonest reasons first."""
    reasons = Counter(
        one["error"] for column_annotations in annotations.values() for one in column_annotations if "error" in one
    )
    notes = [f"missing ({count}): {reason.rstrip('.')}" for reason, count in reasons.most_common(_MOST_REASONS)]
    return [*notes, "--retry-missing asks the judge again"] if notes else []


def _win(annotation: Mapping[str, Any]) -> float | None:
    preference = annotation["preference"]
    return None if preference is None else preference - 1


def _as_dict(scored: Score, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    made = Score(task=scored.task, n=scored.n, metrics=metrics, counts=scored.counts, notes=scored.notes[:1])
    return made.as_dict()


def _line(column: str, score: Mapping[str, Any]) -> str:
    metrics, counts = score["metrics"], score["counts"]
    parts = [_rate("win rate", metrics["win_rate"])]
    if "length_controlled_win_rate" in metrics:
        parts.append(_rate("length-controlled", metrics["length_controlled_win_rate"]))
    judged = f"{metrics['win_rate']['n']} of {score['n']} judged, {counts['num_unparsable']} missing"
    return f"{column}: {', '.join(parts)}; {judged}."


def _rate(name: str, metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return f"{name} -"
    error = metric["standard_error"]
    return f"{name} {metric['value']:.2f} %" + ("" if error is None else f" (SE {error:.2f})")


def _difference(pair: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in pair["ci95"])
    value = f"{100 * pair['difference']:+.2f} points [{low:+.2f}, {high:+.2f}]"
    return f"{pair['second']} - {pair['first']}: {value} on {pair['n']} instructions."
