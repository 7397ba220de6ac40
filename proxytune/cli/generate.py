"""Complete prompts with the steered base.

A JSONL row of input is {"prompt": text, chat messages or token ids}, optionally with "id", "alpha" and "seed" of its
own; {"messages": [...]} is a prompt too.
"""

import argparse
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from proxytune.cli.decoding_arguments import add_decoding_arguments, decoding_options
from proxytune.cli.fingerprint import settings_of
from proxytune.cli.inputs import InputRow, add_input_arguments, read_rows
from proxytune.cli.outputs import Sink, add_output_arguments, open_sink
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.rows import Expected, Line, finite, json_line
from proxytune.cli.stderr import is_watched, note
from proxytune.errors import RuntimeUnsupportedError

if TYPE_CHECKING:
    from proxytune.completion import Completion, TokenLogprob

HELP = "complete prompts"
EXAMPLE = """\
  proxytune generate --base meta-llama/Llama-2-70b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --expert-prompt chat --load-in-4bit \\
      --prompts questions.jsonl --output answers.jsonl --max-new-tokens 128"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_input_arguments(command, has_text=True)
    add_output_arguments(command)
    command.add_argument("--format", choices=("jsonl", "text"), default="jsonl", help="of the output (jsonl)")
    command.add_argument("--timing", action="store_true", help="add seconds and sizes of the batch to each row")
    add_decoding_arguments(command, is_batched=True)
    add_role_arguments(command, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Complete every prompt; whatever can be checked without the models is checked before they load."""
    options = decoding_options(args)
    choice = choose_roles(args)
    _require_no_beams(choice, options)
    rows = read_rows(args)
    is_sampled = options.get("temperature", 0) > 0
    seeds = [row.seed if row.seed is not None else args.seed for row in rows] if is_sampled else [None] * len(rows)
    given = [given_fields(row, choice, seed) for row, seed in zip(rows, seeds, strict=True)]
    expected = Expected(given=given, num_sequences=options.get("num_return_sequences", 1))
    settings = partial(settings_of, choice, "generate", dict(options))
    options["progress"] = is_watched() if args.progress is None else args.progress
    with open_sink(args, expected, settings, is_text=args.format == "text") as sink:
        todo = [row for row in rows if row.index not in sink.done]
        if is_sampled:
            # Drawn here rather than in the engine, so that each row can tell how to make it again.
            options["seed"] = [secrets.randbits(48) if seeds[row.index] is None else seeds[row.index] for row in todo]
        failures: list[str] = []
        try:
            if todo:
                failures = _complete(choice, todo, options, sink, _writer(args, given, expected.num_sequences))
            sink.finish()
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(sink.interruption()) from interruption
        if failures:
            note(sink.failure(len(failures), failures[0]))
    return 1 if failures else 0


def _require_no_beams(choice: RoleChoice, options: Mapping[str, Any]) -> None:
    """Raise before the engine starts what the runtime would say afterwards."""
    if choice.runtime == "vllm" and options.get("num_beams", 1) > 1:
        raise RuntimeUnsupportedError(
            f"num_beams={options['num_beams']}: the vllm runtime has no beam search; take --runtime hf for it."
        )


def given_fields(row: InputRow, choice: RoleChoice, seed: int | None = None) -> dict[str, Any]:
    """Return what a row of output repeats of its input: enough to recognise it when a run is gone on with."""
    alphas = row_alphas(row, choice)
    seed_field = {} if seed is None else {"seed": seed}
    return row.given | {"alpha": alphas[0] if len(alphas) == 1 else alphas} | seed_field


def row_alphas(row: InputRow, choice: RoleChoice) -> list[float]:
    """Return the strength of each pair for one row."""
    if row.alpha is None:
        return list(choice.alphas)
    return row.alpha if isinstance(row.alpha, list) else [row.alpha] * len(choice.pairs)


def _complete(
    choice: RoleChoice,
    rows: Sequence[InputRow],
    options: dict[str, Any],
    sink: Sink,
    line_of: Callable[[InputRow, "Completion", int | None], Line],
) -> list[str]:
    """Complete rows; return why some ended with an error."""
    failures: list[str] = []
    seeds = options.get("seed", [None] * len(rows))
    alpha = [row_alphas(row, choice) for row in rows] if any(row.alpha is not None for row in rows) else None
    rows_per_request = options.get("num_return_sequences", 1) if options.get("num_beams", 1) > 1 else 1
    with choice.loaded() as generator:
        sink.begin()
        completions = generator.generate_as_done([row.prompt for row in rows], alpha=alpha, **options)
        # vLLM has no batches to keep whole: rows come and go one by one.
        is_batched = generator.runtime == "hf"
        for batch in _batches(completions, rows_per_request) if is_batched else ([done] for done in completions):
            sink.write([line_of(rows[done.index], done, seeds[done.index]) for done in batch])
            failures += [done.error for done in batch if done.error is not None]
    return failures


def _batches(completions: Iterable["Completion"], rows_per_request: int) -> Iterator[list["Completion"]]:
    """Yield completions by the batches they were decoded in.

    A file that holds whole batches only can be gone on with in the very batches of an uninterrupted run, so that even
    the last digits of log-probabilities come out the same.
    """
    batch: list[Completion] = []
    for done in completions:
        batch.append(done)
        if len(batch) >= done.timing.batch_size * rows_per_request:
            yield batch
            batch = []
    if batch:
        yield batch


def _writer(
    args: argparse.Namespace, given: Sequence[dict[str, Any]], num_sequences: int
) -> Callable[[InputRow, "Completion", int | None], Line]:
    """Return the function that makes a completion's line in the wanted format."""

    def text_line(row: InputRow, done: "Completion", seed: int | None) -> Line:
        return Line(row.index, done.sequence, num_sequences, done.text + "\n")

    def row_line(row: InputRow, done: "Completion", seed: int | None) -> Line:
        fields = {
            "index": row.index,
            "sequence": done.sequence,
            **given[row.index],
            "text": done.text,
            "token_ids": done.token_ids,
            "finish_reason": done.finish_reason,
        }
        if done.error is not None:
            fields["error"] = done.error
        if seed is not None:
            fields["seed"] = seed + done.sequence
        if done.base_mass is not None:
            fields["base_mass"] = [round(mass, 6) for mass in done.base_mass]
        if done.logprobs is not None:
            fields["logprobs"] = [_logprob(token) for token in done.logprobs]
        if args.timing or args.stats:
            timing = asdict(done.timing)
            fields["timing"] = timing if args.stats else {key: timing[key] for key in timing if key != "stats"}
        return json_line(fields, num_sequences)

    return text_line if args.format == "text" else row_line


def _logprob(token: "TokenLogprob") -> dict[str, Any]:
    entry: dict[str, Any] = {"token_id": token.token_id, "logprob": finite(token.logprob)}
    if token.top:
        entry["top"] = {str(index): finite(value) for index, value in token.top.items()}
    return entry
