"""AlpacaEval 1 (AlpacaFarm's judge) and 2: win rate, its standard error, length-controlled rate, average length.

Rows are the annotations that AlpacaEval writes: `instruction`, `generator_1` (the reference), `generator_2` (the
model), `output_2`, `preference` (1 reference, 2 model, between for a weighted judge; 1.5 or 0 a draw; null missing),
and `raw_completion` where the judge's log-probabilities were kept: the preference is then computed from them, and rows
whose stored preference differs are counted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.scoring.length_controlled import ModelWeights, predict
from benchmarks.scoring.preference import DRAW, answer_logprobs, is_switched, weighted_preference
from benchmarks.scoring.rows import Row, reject_doubles
from benchmarks.scoring.score import Metric, Score, mean, num_missing
from proxytune.errors import InputError

NAME = "alpacaeval"
BENCHMARK_ROWS = 805
# Published preferences are rounded to ten decimals.
_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class LengthControl:
    """Inputs of the length-controlled rate beyond the annotations.

    Attributes:
        weights: The published regression's, by model.
        difficulties: Of each instruction, in AlpacaEval's order.
        instructions: In AlpacaEval's order; None takes a row's place in the file for its place there, as the package
            does, which is off where rows are missing.
    """

    weights: dict[str, ModelWeights]
    difficulties: Sequence[float]
    instructions: Sequence[str] | None = None


def score(rows: Sequence[Row], *, length_control: LengthControl | None = None) -> Score:
    """Return the rates in per cent.

    Raises:
        InputError: A row lacks a field, holds no preference, two answer the same instruction, several models are mixed,
            or the length control does not fit.
    """
    reject_doubles(rows, name="instruction")
    model, reference = (_only(rows, name) for name in ("generator_2", "generator_1"))
    stored = [_stored(row) for row in rows]
    judged = [_from_logprobs(row) for row in rows]
    preferences = [_chosen(row, *pair) for row, *pair in zip(rows, stored, judged, strict=True)]
    wins = [preference - 1 for preference in preferences if preference is not None]
    metrics = {
        "win_rate": mean(wins, scale=100),
        "discrete_win_rate": mean((_rounded(win) for win in wins), scale=100),
        "average_length": mean(float(len(row.text("output_2"))) for row in rows),
    }
    if length_control is not None:
        metrics["length_controlled_win_rate"] = _controlled(rows, model, length_control)
    return Score(
        task=NAME,
        n=len(rows),
        metrics=metrics,
        counts={
            "num_wins": sum(win > 0.5 for win in wins),
            "num_wins_reference": sum(win < 0.5 for win in wins),
            "num_draws": sum(win == 0.5 for win in wins),
            "num_missing": num_missing(len(rows), benchmark_rows=BENCHMARK_ROWS),
            "num_unparsable": preferences.count(None),
            "num_from_logprobs": sum(preference is not None for preference in judged),
            "num_judged_otherwise": sum(
                held is not None and computed is not None and abs(held - computed) > _TOLERANCE
                for held, computed in zip(stored, judged, strict=True)
            ),
        },
        notes=(f"{model} against {reference}", *_notes(length_control)),
    )


def align(rows: Sequence[Row], instructions: Sequence[str] | None) -> Iterator[int]:
    """Yield each row's place in AlpacaEval's order.

    Raises:
        InputError: A row's instruction is not, to the byte, one of AlpacaEval's.
    """
    if instructions is None:
        yield from range(len(rows))
        return
    positions = {instruction: position for position, instruction in enumerate(instructions)}
    for row in rows:
        instruction = row.text("instruction")
        if instruction not in positions:
            raise InputError(f"{row.place}: the instruction {instruction[:60]!r} is none of the reference file's.")
        yield positions[instruction]


def _controlled(rows: Sequence[Row], model: str, control: LengthControl) -> Metric:
    if model not in control.weights:
        raise InputError(
            f"there are no published weights for {model!r}: its length-controlled rate needs a fit on df_gamed.csv "
            "(alpaca-eval does it with the hub); leave --glm-weights out for the other rates."
        )
    positions = list(align(rows, control.instructions))
    if max(positions) >= len(control.difficulties):
        raise InputError(
            f"{max(positions) + 1} instructions, and difficulties for only {len(control.difficulties)} of them."
        )
    return mean(predict(control.weights[model], [control.difficulties[position] for position in positions]), scale=100)


def _notes(control: LengthControl | None) -> tuple[str, ...]:
    if control is None:
        return ("no length-controlled rate: it needs --glm-weights and --instruction-difficulty",)
    order = "their place in the file" if control.instructions is None else "their text"
    return (
        "length-controlled form: the published regression weights with the given difficulties, nothing refitted; "
        f"instructions are matched by {order}; its standard error holds the weights fixed",
    )


def _only(rows: Sequence[Row], name: str) -> str:
    first = rows[0].text(name)
    for row in rows:
        if row.text(name) != first:
            raise InputError(
                f"{row.place}: field {name!r} is {row.text(name)!r}, before it was {first!r}; score one at a time."
            )
    return first


def _stored(row: Row) -> float | None:
    value = row.number("preference", low=0, high=2)
    if value is None or value >= 1:
        return value
    if value != 0:
        raise InputError(f"{row.place}: field 'preference' is {value:g}, not 0 (a draw) or from 1 to 2.")
    return DRAW


def _from_logprobs(row: Row) -> float | None:
    logprobs = answer_logprobs(row.fields.get("raw_completion"))
    return None if logprobs is None else weighted_preference(logprobs, switched=is_switched(row.text("instruction")))


def _chosen(row: Row, stored: float | None, judged: float | None) -> float | None:
    # Log-probabilities without m or M are no verdict, whatever else the row says.
    return judged if answer_logprobs(row.fields.get("raw_completion")) is not None else stored


def _rounded(win: float) -> float:
    return win if win == 0.5 else math.floor(win + 0.5)
