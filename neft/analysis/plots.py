"""The analyses as PNG plots, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neft.analysis.extras import optional
from neft.analysis.files import write_whole

Models = Mapping[str, Mapping[str, Any]]
_NUM_BINS = 40
_SETS = {"train": "training", "held_out": "held out"}


def write_plots(models: Models, folder: Path) -> list[Path]:
    """Writes the plots that the figures allow and returns their paths."""
    drawings: dict[str, Callable[[Any, Models], None]] = {"losses.png": _losses, "flips.png": _flips}
    if all(figures[key]["texts"] for figures in models.values() for key in _sets(models)):
        drawings |= {"overlap.png": _overlap, "lengths.png": _lengths, "diversity.png": _diversity}
    if not all(figures["train"]["flips"] for figures in models.values()):
        del drawings["flips.png"]
    paths = []
    for name, draw in drawings.items():
        figure = new_figure()
        draw(figure, models)
        paths.append(save_figure(figure, folder / name))
    return paths


def new_figure(width: float = 8.0, height: float = 3.6) -> Any:
    """Returns an empty figure of so many inches; it belongs to no window and no global state."""
    return optional("matplotlib.figure", "a plot").Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    # Without the version in it, equal figures are equal files.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def _sets(models: Models) -> list[str]:
    return [key for key in _SETS if all(key in figures for figures in models.values())]


def _losses(figure: Any, models: Models) -> None:
    """Draws the histograms of the documents' losses, as in the paper's figure on overfitting."""
    keys = _sets(models)
    panels = figure.subplots(1, len(keys), squeeze=False, sharex=True)[0]
    longest = max(loss for figures in models.values() for key in keys for loss in figures[key]["document_losses"])
    # The same bins for all, or a model whose losses are close together would be too thin to see.
    edges = [longest * edge / _NUM_BINS for edge in range(_NUM_BINS + 1)]
    for axis, key in zip(panels, keys, strict=True):
        for name, figures in models.items():
            label = f"{name}: {figures[key]['loss']:.3f}"
            axis.hist(figures[key]["document_losses"], bins=edges, alpha=0.55, label=label)
        axis.set(title=f"{_SETS[key]}, without noise", xlabel="nats per token, per document", ylabel="documents")
        axis.legend(fontsize="small")


def _flips(figure: Any, models: Models) -> None:
    keys = _sets(models)
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axis, key in zip(panels, keys, strict=True):
        for name, figures in models.items():
            flips = figures[key]["flips"]
            axis.plot([float(alpha) for alpha in flips], list(flips.values()), marker="o", label=name)
        axis.set(title=_SETS[key], xlabel="α of the noise at inference", ylabel="top tokens flipped, %")
        axis.legend(fontsize="small")


def _overlap(figure: Any, models: Models) -> None:
    panels = figure.subplots(1, 2)
    for axis, (title, metric) in zip(panels, (("ROUGE-L", "rouge_l"), ("BLEU", "bleu")), strict=True):
        _bars(axis, models, lambda texts, metric=metric: texts[metric])
        axis.set_title(f"{title} against the targets")


def _lengths(figure: Any, models: Models) -> None:
    panels = figure.subplots(1, 2)
    for axis, (title, metric) in zip(panels, (("characters", "num_chars"), ("words", "num_words")), strict=True):
        _bars(axis, models, lambda texts, metric=metric: texts["outputs"][metric])
        axis.set_title(f"{title} per output")


def _diversity(figure: Any, models: Models) -> None:
    panels = figure.subplots(1, 3)
    titles = {
        "2-gram repetition, %": "repetition_2_percent",
        "log-diversity (paper)": "log_diversity_paper",
        "log-diversity (plain)": "log_diversity_plain",
    }
    for axis, (title, metric) in zip(panels, titles.items(), strict=True):
        _bars(axis, models, lambda texts, metric=metric: texts["outputs"][metric])
        axis.set_title(title, fontsize="medium")


def _bars(axis: Any, models: Models, value: Callable[..., float | None]) -> None:
    """Draws a group of bars per model, one for each data set."""
    keys = _sets(models)
    width = 0.8 / len(keys)
    for number, key in enumerate(keys):
        heights = [value(figures[key]["texts"]) or 0.0 for figures in models.values()]
        axis.bar(
            [_bar_position(index, number, width) for index in range(len(models))], heights, width, label=_SETS[key]
        )
    _name_ticks(axis, list(models))
    axis.margins(y=0.3)
    axis.legend(fontsize="small")


def _bar_position(index: int, number: int, width: float) -> float:
    return index - 0.4 + width * (number + 0.5)


def _name_ticks(axis: Any, names: Sequence[str]) -> None:
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize="small")
