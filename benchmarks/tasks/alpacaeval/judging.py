"""Judge a run of alpacaeval: each answer beside a reference's, by the alpaca-eval package and any server's model.

The same command goes on after any end. The verdicts, alpaca-eval's annotations.json of each column and metrics.json lie
below the run's folder; the server's key comes from an environment variable and is written nowhere.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.files import differences, make_folder, read_json, write_json
from benchmarks.provenance import file_digest
from benchmarks.run import METRICS, PREDICTIONS, RunFolder
from benchmarks.scoring.length_controlled import read_difficulties
from benchmarks.tasks.alpacaeval.annotations import annotate_missing, read_annotations
from benchmarks.tasks.alpacaeval.figures import figures, official_annotations, report
from benchmarks.tasks.alpacaeval.judge import FORMS, Judge
from benchmarks.tasks.alpacaeval.length_control import BASELINE, LengthControl
from benchmarks.tasks.alpacaeval.outputs import file_name, open_run, write_outputs
from benchmarks.tasks.alpacaeval.reference import REFERENCES, Reference, find, read_instructions, read_reference
from proxytune.cli.stderr import is_watched
from proxytune.errors import InputError, OptionError

EXAMPLE = """\
  JUDGE_KEY=… python -m benchmarks alpacaeval-judge runs/alpacaeval-13b --reference alpaca_eval_gpt4_baseline.json \\
      --judge-url https://judge.example/v1 --judge-model gpt-4-1106-preview --judge-key-env JUDGE_KEY"""
JUDGE = "judge.json"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("run_folder", metavar="RUN", help="the folder of a complete run of alpacaeval")
    data = command.add_mutually_exclusive_group()
    data.add_argument("--reference", metavar="FILE", help="reference outputs: GPT-4 Turbo's (2) or Davinci 003's (1)")
    data.add_argument("--data-dir", metavar="FOLDER", help="where to look for them, by the form's version")
    judge = command.add_argument_group("judge", "any OpenAI-compatible server")
    judge.add_argument("--judge-url", required=True, metavar="URL", help="as in http://localhost:8000/v1")
    judge.add_argument("--judge-model", required=True, metavar="NAME", help="as the server knows it")
    judge.add_argument("--judge-key-env", metavar="NAME", help="environment variable that holds the server's key")
    judge.add_argument(
        "--judge-form",
        choices=tuple(FORMS),
        default="weighted",
        help="weighted: log-probabilities, AlpacaEval 2 (the default); ranking: in words, AlpacaEval 1",
    )
    judge.add_argument("--judge-timeout", type=float, default=60.0, metavar="S", help="seconds for one try (60)")
    judge.add_argument("--max-attempts", type=int, default=4, metavar="N", help="tries per answer, then missing (4)")
    judge.add_argument("--max-concurrency", type=int, default=5, metavar="N", help="requests at a time (5)")
    judge.add_argument("--retry-missing", action="store_true", help="ask again where the judge failed before")
    lengths = command.add_argument_group("length-controlled win rate").add_mutually_exclusive_group()
    lengths.add_argument("--df-gamed", metavar="CSV", help="alpaca-eval's df_gamed.csv, for the published form")
    lengths.add_argument("--instruction-difficulty", metavar="CSV", help="for a fit without it: lower, and marked so")
    command.add_argument("--output", metavar="FOLDER", help="in place of RUN/judged/FORM-REFERENCE-MODEL")
    command.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar on stderr")


def run(args: argparse.Namespace) -> int:
    """Judge what is missing, make the figures anew, and print them; everything is checked before a judge is asked."""
    run_folder = open_run(Path(args.run_folder).expanduser())
    judge = Judge(
        url=args.judge_url,
        model=args.judge_model,
        form=args.judge_form,
        key_env=args.judge_key_env,
        timeout_s=args.judge_timeout,
        max_attempts=args.max_attempts,
        max_concurrency=args.max_concurrency,
    )
    path = find(args.reference, args.data_dir, REFERENCES[FORMS[judge.form].version], option="--reference")
    reference = read_reference(path)
    control = _length_control(args, reference)
    rows = run_folder.rows()
    _require_instructions(rows, reference)
    if args.df_gamed:
        _require_order(rows, reference)
    write_outputs(run_folder)
    folder = _judged_folder(args.output, run_folder, reference, judge)
    description = _description(run_folder, reference, judge)
    _require_same(folder, description)
    annotate_missing(
        folder,
        rows,
        reference,
        judge,
        is_retried=args.retry_missing,
        has_progress=is_watched() if args.progress is None else args.progress,
    )
    annotations = official_annotations(rows, read_annotations(folder), reference)
    for column, column_annotations in annotations.items():
        (folder / file_name(column)).mkdir(exist_ok=True)
        write_json(folder / file_name(column) / "annotations.json", column_annotations)
    seed = run_folder.configuration.settings.get("seed", 0)
    metrics = {**description, **figures(annotations, rows, control=control, seed=seed)}
    write_json(folder / METRICS, metrics)
    sys.stdout.write(report(metrics))
    return 0


def _length_control(args: argparse.Namespace, reference: Reference) -> LengthControl | None:
    given = args.df_gamed or args.instruction_difficulty
    if not given:
        return None
    if reference.generator != BASELINE:
        raise OptionError(
            f"the length-controlled rate is defined against {BASELINE}, and the reference is {reference.generator}: "
            "leave --df-gamed and --instruction-difficulty out."
        )
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(f"{given!r} does not exist: name alpaca-eval's file for length control.")
    if args.df_gamed:
        return LengthControl(df_gamed=path)
    instructions, difficulties = read_instructions(reference.path), read_difficulties(path)
    if len(instructions) != len(difficulties):
        raise InputError(
            f"{given!r} has difficulties of {len(difficulties)} instructions, the reference {len(instructions)}."
        )
    texts = (instruction.text for instruction in instructions)
    return LengthControl(difficulties=dict(zip(texts, difficulties, strict=True)))


def _require_instructions(rows: list[dict[str, Any]], reference: Reference) -> None:
    alien = next((row for row in rows if row["instruction"] not in reference.outputs), None)
    if alien is not None:
        raise InputError(
            f"{reference.path} has no output for the instruction {alien['instruction'][:60]!r}: instructions must be "
            "the reference's to the byte."
        )


def _require_order(rows: list[dict[str, Any]], reference: Reference) -> None:
    # The package finds an instruction's difficulty by the place of its row.
    positions = {instruction: position for position, instruction in enumerate(reference.outputs)}
    count: Counter[str] = Counter()
    for row in rows:
        if positions[row["instruction"]] != count[row["column"]]:
            raise OptionError(
                "--df-gamed needs the instructions in the reference's order, from the first on: merge the shards of "
                "the run, or take --instruction-difficulty."
            )
        count[row["column"]] += 1


def _judged_folder(given: str | None, run_folder: RunFolder, reference: Reference, judge: Judge) -> Path:
    name = file_name(f"{judge.form}-{reference.generator}-{judge.model}")
    return make_folder(Path(given).expanduser() if given else run_folder.path / "judged" / name)


def _description(run_folder: RunFolder, reference: Reference, judge: Judge) -> dict[str, Any]:
    """Return what decides the verdicts."""
    return {
        "task": run_folder.configuration.task,
        "fingerprint": run_folder.configuration.fingerprint,
        "shard": str(run_folder.configuration.shard),
        "predictions_sha256": file_digest(run_folder.path / PREDICTIONS),
        "judge": judge.describe(),
        "reference": {"generator": reference.generator, "sha256": file_digest(reference.path)},
    }


def _require_same(folder: Path, description: Mapping[str, Any]) -> None:
    path = folder / JUDGE
    if path.exists() and (different := differences(read_json(path), dict(description))):
        raise OptionError(
            f"{str(folder)!r} holds verdicts of another judging: {'; '.join(different[:3])}. "
            "Give the same options, or take another --output folder."
        )
    write_json(path, dict(description))
