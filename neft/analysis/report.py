"""The analysis as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neft.analysis.tables import markdown_table, number

_SETS = {"train": "training", "held_out": "held out"}


def analysis_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table with a column per model, and notes on what it cannot say."""
    names = list(models)
    rows = [["alpha in training", *(number(models[name].get("alpha"), 1) for name in names)]]
    for key, label in _SETS.items():
        if all(key in figures for figures in models.values()):
            rows += _rows(label, [models[name][key] for name in names])
    return "\n".join([markdown_table(["", *names], rows), *_notes(models)])


def _rows(label: str, columns: list[Mapping[str, Any]]) -> list[list[str]]:
    rows = [[f"{label}: loss without noise", *(number(column["loss"]) for column in columns)]]
    rows += [
        [f"{label}: top tokens flipped by α={alpha}, %", *(number(column["flips"][alpha], 2) for column in columns)]
        for alpha in columns[0]["flips"]
    ]
    texts = [column["texts"] for column in columns]
    if None in texts:
        return rows
    overlaps = {
        "ROUGE-L against targets": "rouge_l",
        "BLEU against targets": "bleu",
        "outputs ended, %": "ended_percent",
    }
    rows += [[f"{label}: {title}", *(number(text[key], 2) for text in texts)] for title, key in overlaps.items()]
    statistics = {
        "characters": ("num_chars", 1),
        "whitespace words": ("num_words", 1),
        "2-gram repetition, %": ("repetition_2_percent", 2),
        "log-diversity (paper)": ("log_diversity_paper", 2),
        "log-diversity (plain)": ("log_diversity_plain", 2),
    }
    for title, (key, digits) in statistics.items():
        rows.append([f"{label}: {title}", *(number(text["outputs"][key], digits) for text in texts)])
    return rows


def _notes(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    counts = {figures["train"]["num_tokens"] for figures in models.values()}
    if len(counts) > 1:
        notes.append("The models read the data as different tokens, so their losses cannot be compared.")
    texts = [figures["train"]["texts"] for figures in models.values()]
    if texts and None not in texts:
        targets = texts[0]["targets"]
        notes.append(
            f"Training targets of these rows: {number(targets['num_chars'], 1)} characters, "
            f"{number(targets['num_words'], 1)} words; {texts[0]['outputs']['num_texts']} texts. "
            "Log-diversity (plain) has no value where nothing repeats."
        )
    elif texts:
        notes.append("No texts were generated: none was asked for, or no row begins with a prompt that fits.")
    return ["", *notes] if notes else []
