"""The cells of a grid as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neft.ablation.cells import CellResult
from neft.ablation.grid import NO_NOISE
from neft.ablation.statistics import Interval, t_interval
from neft.analysis.tables import markdown_table

_TITLES = {
    "train_loss": ("train loss", 3),
    "eval_loss": ("held-out loss", 3),
    "eval_loss_change": ("held-out, change from α=0", 3),
    "num_chars": ("characters", 1),
    "num_words": ("words", 1),
}


@dataclass(frozen=True)
class SettingSummary:
    """One strength and distribution over its seeds.

    Attributes:
        alpha: The strength.
        noise: The distribution, or `none`.
        num_seeds: Runs with figures.
        num_failed: Runs that diverged.
        metrics: Means with intervals. `eval_loss_change` is the difference to strength 0 at the same seed: seeds share
            their data order, so that it varies less than the losses do.
    """

    alpha: float
    noise: str
    num_seeds: int
    num_failed: int
    metrics: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def summarize(results: Sequence[CellResult]) -> list[SettingSummary]:
    """Returns a summary of every setting, in the order of the grid."""
    plain = {result.cell.seed: result.metrics for result in results if result.cell.alpha == 0}
    settings: dict[tuple[float, str], list[CellResult]] = {}
    for result in results:
        settings.setdefault((result.cell.alpha, result.cell.noise or NO_NOISE), []).append(result)
    return [_summary(alpha, noise, group, plain) for (alpha, noise), group in settings.items()]


def summary_table(summaries: Sequence[SettingSummary]) -> str:
    """Returns the table: means ± half of the 95 % t interval over the seeds."""
    known = [name for name in _TITLES if any(name in summary.metrics for summary in summaries)]
    header = ["α", "noise", "seeds", *(_TITLES[name][0] for name in known)]
    rows = []
    for summary in summaries:
        cells = [summary.metrics[name].text(_TITLES[name][1]) if name in summary.metrics else "–" for name in known]
        failed = f" (+{summary.num_failed} diverged)" if summary.num_failed else ""
        rows.append([f"{summary.alpha:g}", summary.noise, f"{summary.num_seeds}{failed}", *cells])
    note = "Losses without noise, in nats per learned token; mean ± half of the 95 % t interval over the seeds."
    return f"{markdown_table(header, rows)}\n\n{note}"


def _summary(
    alpha: float, noise: str, group: Sequence[CellResult], plain: dict[int, dict[str, float]]
) -> SettingSummary:
    finished = [result for result in group if result.failure is None]
    names = finished[0].metrics if finished else {}
    metrics = {name: t_interval([result.metrics[name] for result in finished]) for name in names}
    changes = [
        result.metrics["eval_loss"] - plain[result.cell.seed]["eval_loss"]
        for result in finished
        if alpha and "eval_loss" in result.metrics and "eval_loss" in plain.get(result.cell.seed, {})
    ]
    if changes:
        metrics["eval_loss_change"] = t_interval(changes)
    return SettingSummary(alpha, noise, len(finished), len(group) - len(finished), metrics)
