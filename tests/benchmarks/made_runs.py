"""Run folders made by the framework from scores that a test chooses, so that figures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.registry import TASKS
from benchmarks.run import Configuration, RunFolder, Shard

FLOAT32 = {"folder": "big", "sha256": "ba5e0000", "dtype": "float32"}
EXPERT = {"folder": "small+", "sha256": "e0000000", "dtype": "float32"}
ANTI = {"folder": "small", "sha256": "a0000000", "dtype": "float32"}
TUNED = {"folder": "big+", "sha256": "70000000", "dtype": "float32"}


def model_of(name: str, base: Mapping[str, Any] = FLOAT32) -> dict[str, Any]:
    """Return what config.json says of a column: `base`, `expert`, `steered`, `steered@α`, or any other model."""
    if name.startswith("steered"):
        alpha = float(name.partition("@")[2] or 1)
        return {"kind": "steered", "base": base, "pairs": [{"expert": EXPERT, "anti": ANTI, "alpha": alpha}]}
    if name == "base":
        return {"kind": "base", "base": base}
    return {"kind": "expert", "base": EXPERT} if name == "expert" else {"kind": "model", "base": TUNED}


def make_run(
    folder: Path,
    scores: Mapping[str, Sequence[float | None]],
    *,
    task: str = "gsm8k",
    base: Mapping[str, Any] = FLOAT32,
    shard: Shard | None = None,
    num_chunks: int | None = None,
    texts: Mapping[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write a run whose columns have these scores on their questions, all of it or only `num_chunks` columns.

    `texts` has the answers of columns (gsm8k) in place of plain ones.
    """
    [size] = {len(values) for values in scores.values()}
    part = {"truthfulqa-letter": "letter", "truthfulqa": "mc"}.get(task, task)
    configuration = Configuration(
        task=task.removesuffix("-letter"),
        settings={
            "data": {"file": "questions", "sha256": "da7a"},
            "models": {name: model_of(name, base) for name in scores},
            "prompt_formats": {"base_prompt": None},
            "runtime": "hf",
            "limit": None,
            "batch_size": 16,
            "seed": 0,
            **settings,
        },
        columns=list(scores),
        sizes={part: size},
        chunk_size=size,
        shard=shard or Shard(),
        sessions=[
            {"started": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.0"}, "git_sha": "abc", "device": "CPU"}
        ],
    )
    run = RunFolder.open(folder, configuration, is_resumed=False)
    with run.predictions() as predictions:
        for chunk in run.chunks[: len(run.chunks) if num_chunks is None else num_chunks]:
            text = (texts or {}).get(chunk.column, "the answer")
            predictions.append([_row(part, key, scores[key[0]][key[2]], text) for key in chunk.keys])
        is_whole = predictions.num_done == len(run.chunks)
    if is_whole:
        run.measure(_measures(configuration.task))
    return folder


def _row(part: str, key: tuple[str, str, int], score: float | None, text: str) -> dict[str, Any]:
    column, _, index = key
    row: dict[str, Any] = {"column": column, "part": part, "index": index}
    if part == "gsm8k":
        verdicts = {"is_exact_match": score, "is_numeric_match": score}
        return {**row, "question": f"question {index} of {text}", "model_output": text, **verdicts}
    if part == "alpacaeval":
        own = {"instruction": f"{index}", "dataset": "made", "output": text, "num_characters": len(text)}
        return {**row, **own, "is_cut_off": False}
    if part == "letter":
        return {**row, "Question": f"question {index}", "mc_output": text, "is_right": score}
    verdicts = {"MC1": score, "MC2": score, "MC3": score}
    return {**row, "Question": f"question {index}", "Category": "even" if index % 2 == 0 else "odd", **verdicts}


def _measures(task: str) -> Any:
    from importlib import import_module

    return import_module(TASKS[task].module).MEASURES
