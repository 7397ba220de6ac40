"""`analyze`: the figures of several models on the same data, in a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neft.analysis.files import read_json, write_json, write_whole
from neft.analysis.interrupts import resumable
from neft.analysis.measuring import measure
from neft.analysis.options import AnalysisConfig
from neft.analysis.report import analysis_table
from neft.analysis.sources import load_subject, model_identity
from neft.data import checksum
from neft.errors import OutputError
from neft.output import read_record
from neft.recording import now, versions

RESULT_FILE = "analysis.json"
TABLE_FILE = "table.md"
_MODELS = "models"


def analyze(config: AnalysisConfig) -> dict[str, Any]:
    """Measures every model and writes `analysis.json`, `table.md`, the plots and each model's texts.

    A model that the folder has figures of, from the same files and options, is not measured again.

    Returns:
        Content of `analysis.json`.

    Raises:
        InputError: a model or the data cannot be used.
        OutputError: the output folder holds something else.
    """
    _check_output(config)
    shared = {"options": config.record(), "data": _checksums(config)}
    models = {}
    with resumable("model"):
        for name, model in zip(config.names, config.models, strict=True):
            models[name] = _figures(name, model, config, shared)
    result = {
        **shared,
        "models": models,
        "finished": now(),
        "versions": versions(),
    }
    if config.has_plots:
        from neft.analysis.plots import write_plots

        write_plots(models, config.output)
    write_whole(config.output / TABLE_FILE, analysis_table(models) + "\n")
    write_json(config.output / RESULT_FILE, result)
    return result


def _figures(name: str, model: str, config: AnalysisConfig, shared: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's figures, from the file of an earlier analysis if it had the same inputs."""
    path = config.output / _MODELS / f"{name}.json"
    identity = {**shared, "model": model_identity(model)}
    earlier = read_json(path)
    if isinstance(earlier, dict) and earlier.get("identity") == identity:
        figures: dict[str, Any] = earlier["figures"]
        return figures
    subject = load_subject(config.data, tuned=Path(model))
    sets = {"train": subject.train, "held_out": subject.held_out}
    measured = {key: measure(subject, s, config, f"{name}: {key}") for key, s in sets.items() if s is not None}
    figures = {"model": model, "alpha": _trained_alpha(model)}
    figures |= {key: measures.figures for key, measures in measured.items()}
    texts = {key: measures.texts for key, measures in measured.items()}
    write_json(path, {"identity": identity, "figures": figures, "texts": texts})
    return figures


def _trained_alpha(model: str) -> float | None:
    """Returns the alpha that a model's `neft.json` says it was trained with; None if it says nothing."""
    alpha = read_record(Path(model)).get("config", {}).get("alpha")
    return alpha if isinstance(alpha, (int, float)) else None


def _checksums(config: AnalysisConfig) -> dict[str, str]:
    paths = {"train": config.data.data, "eval": config.data.eval_data}
    return {name: checksum(path) for name, path in paths.items() if path is not None}


def _check_output(config: AnalysisConfig) -> None:
    output = config.output
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file; choose a folder.")
    is_ours = (output / RESULT_FILE).exists() or (output / _MODELS).is_dir()
    if output.is_dir() and any(output.iterdir()) and not is_ours and not config.overwrite:
        raise OutputError(f"output {output} already holds something else; choose another folder or add --overwrite.")
