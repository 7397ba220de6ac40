"""A grid as a PNG plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neft.ablation.grid import NO_NOISE
from neft.ablation.summary import SettingSummary
from neft.analysis.plots import new_figure, save_figure

_PANELS = {"train_loss": "training rows, without noise", "eval_loss": "held-out rows"}


def plot_losses(summaries: Sequence[SettingSummary], path: Path) -> Path:
    """Draws losses over α, one line per distribution, with the confidence intervals as bars; returns the path."""
    known = [name for name in _PANELS if all(name in summary.metrics for summary in summaries)]
    figure = new_figure(width=4.0 * max(1, len(known)))
    panels = figure.subplots(1, max(1, len(known)), squeeze=False)[0]
    for axis, name in zip(panels, known, strict=False):
        _panel(axis, summaries, name)
    return save_figure(figure, path)


def _panel(axis: Any, summaries: Sequence[SettingSummary], name: str) -> None:
    kinds = list(dict.fromkeys(summary.noise for summary in summaries if summary.noise != NO_NOISE))
    for kind in kinds or [NO_NOISE]:
        line = sorted((s for s in summaries if s.noise in (NO_NOISE, kind)), key=_alpha)
        intervals = [summary.metrics[name] for summary in line]
        axis.errorbar(
            [summary.alpha for summary in line],
            [interval.mean for interval in intervals],
            yerr=[interval.half_width or 0.0 for interval in intervals],
            marker="o",
            capsize=3,
            label=kind,
        )
    axis.set(title=_PANELS[name], xlabel="α", ylabel="loss, nats per token")
    axis.legend(fontsize="small")


def _alpha(summary: SettingSummary) -> float:
    return summary.alpha
