"""Show what steering did at every token: of the answers to prompts, or of texts that are there already.

Each line of output is one text with, per token, the likeliest candidates under base, expert, anti and their
combination, KL divergences, cross-entropy, and the token's rank in the base. `proxytune report` makes a page of it.
"""

import argparse
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from proxytune.cli.decoding_arguments import add_decoding_arguments, decoding_options
from proxytune.cli.fingerprint import settings_of
from proxytune.cli.generate import given_fields, row_alphas
from proxytune.cli.inputs import InputRow, add_input_arguments, read_rows
from proxytune.cli.outputs import Sink, add_output_arguments, open_sink
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.rows import Expected, Line, json_line
from proxytune.cli.stderr import is_watched, note
from proxytune.errors import InputError, OptionError, RuntimeUnsupportedError
from proxytune.options import TRACE_CANDIDATES, check_alpha

if TYPE_CHECKING:
    from proxytune.generator import ProxyGenerator
    from proxytune.trace import Trace

HELP = "show what steering did, token by token"
EXAMPLE = """\
  proxytune trace --prompt "Question: Where was Jora Quillmere born?
Answer:" --alphas 0,1,2 --output trace.jsonl
  proxytune report trace.jsonl --output report.html"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_input_arguments(command, has_text=True)
    add_output_arguments(command)
    group = command.add_argument_group("trace")
    group.add_argument(
        "--candidates",
        type=int,
        default=TRACE_CANDIDATES,
        metavar="K",
        help=f"likeliest tokens of each distribution to keep ({TRACE_CANDIDATES})",
    )
    group.add_argument("--alphas", type=alpha_list, metavar="A,B,…", help="every prompt at each of these strengths")
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--continuation", metavar="TEXT", help="trace this text behind every prompt; nothing is generated"
    )
    given.add_argument("--given", action="store_true", help='likewise, with each JSONL row\'s own "continuation"')
    command.add_argument("--batch-size", type=int, metavar="N", help="most rows generated at once (32)")
    add_decoding_arguments(command, is_batched=False)
    add_role_arguments(command, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Trace every row; whatever can be checked without the models is checked before they load."""
    options = decoding_options(args, trace=args.candidates)
    choice = _choose(args)
    rows = _rows(args)
    seeds = [row.seed if row.seed is not None else args.seed for row in rows]
    if options.get("temperature", 0) == 0 or rows[0].continuation is not None:
        seeds = [None] * len(rows)
    given = [given_fields(row, choice, seed) for row, seed in zip(rows, seeds, strict=True)]
    with open_sink(args, Expected(given=given), partial(settings_of, choice, "trace", options)) as sink:
        todo = [row for row in rows if row.index not in sink.done]
        tracing = _Tracing(args, choice, options, seeds, given)
        try:
            if todo:
                tracing.run(todo, sink)
            sink.finish()
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(sink.interruption()) from interruption
        if tracing.failures:
            note(sink.failure(len(tracing.failures), tracing.failures[0]))
    return 1 if tracing.failures else 0


class _Tracing:
    """One run: what to trace, and how its rows are written; `failures` says why some ended with an error."""

    def __init__(
        self,
        args: argparse.Namespace,
        choice: RoleChoice,
        options: dict[str, Any],
        seeds: Sequence[int | None],
        given: Sequence[dict[str, Any]],
    ) -> None:
        self.failures: list[str] = []
        self._choice = choice
        self._options = options
        self._given = given
        self._has_progress = is_watched() if args.progress is None else args.progress
        is_drawn = options.get("temperature", 0) > 0
        per_prompt = len(args.alphas or [None])
        # Without a seed every prompt draws anew, but with the same draws at each of its strengths.
        drawn = [secrets.randbits(48) for _ in range(len(seeds) // per_prompt)]
        drawn_seeds = [drawn[position // per_prompt] if seed is None else seed for position, seed in enumerate(seeds)]
        self._seeds = drawn_seeds if is_drawn else seeds

    def run(self, rows: Sequence[InputRow], sink: Sink) -> None:
        """Load the models and write a line as soon as a row is done."""
        with self._choice.loaded() as generator:
            sink.begin()
            lines = self._lines(generator, rows) if rows[0].continuation is None else self._given_lines(generator, rows)
            for line in lines:
                sink.write([line])

    def _lines(self, generator: "ProxyGenerator", rows: Sequence[InputRow]) -> Iterator[Line]:
        options = self._options | {"progress": self._has_progress}
        if self._options.get("temperature", 0) > 0:
            options["seed"] = [self._seeds[row.index] for row in rows]
        alpha = [row_alphas(row, self._choice) for row in rows]
        for done in generator.generate_as_done([row.prompt for row in rows], alpha=alpha, **options):
            row = rows[done.index]
            seed = self._seeds[row.index]
            extra: dict[str, Any] = {"finish_reason": done.finish_reason}
            if seed is not None:
                extra["seed"] = seed
            if done.error is not None:
                extra["error"] = done.error
                self.failures.append(done.error)
            yield self._line(row, done.text, done.trace, extra)

    def _given_lines(self, generator: "ProxyGenerator", rows: Sequence[InputRow]) -> Iterator[Line]:
        kept = self._options["trace"]
        for row in tqdm(rows, disable=not self._has_progress, unit="row", desc="trace"):
            alpha = [row_alphas(row, self._choice)]
            trace = generator.trace(row.prompt, continuation=row.continuation, alpha=alpha, trace=kept)
            yield self._line(row, trace.text, trace, {})

    def _line(self, row: InputRow, text: str, trace: "Trace | None", extra: dict[str, Any]) -> Line:
        trace_fields = {} if trace is None else trace.row()
        return json_line({"index": row.index, **self._given[row.index], "text": text, **extra, **trace_fields})


def _choose(args: argparse.Namespace) -> RoleChoice:
    """Return the roles, to be run by transformers."""
    if args.runtime == "vllm":
        raise RuntimeUnsupportedError(
            "a trace needs the logits of every role, and vLLM's engine gives those of the combination only: "
            "take --runtime hf."
        )
    if args.alphas and args.alpha is not None:
        raise OptionError("--alpha and --alphas were both given: pass one of them.")
    return replace(choose_roles(args), runtime="hf", engine_options={})


def _rows(args: argparse.Namespace) -> list[InputRow]:
    """Return what to trace: every row once, or at each of --alphas."""
    rows = read_rows(args, has_continuation=args.given)
    if args.continuation is not None:
        if not args.continuation:
            raise InputError("--continuation is empty: there is nothing to trace.")
        continuation_field = {"continuation": args.continuation}
        rows = [replace(row, continuation=args.continuation, given=row.given | continuation_field) for row in rows]
    if not args.alphas:
        return rows
    spread = [replace(row, alpha=alpha) for row in rows for alpha in args.alphas]
    return [replace(row, index=index) for index, row in enumerate(spread)]


def alpha_list(text: str) -> list[float]:
    """Return the numbers of a comma-separated list."""
    try:
        alphas = [check_alpha(float(part)) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of finite numbers, as in 0,1,2") from error
    if len(set(alphas)) < len(alphas):
        raise argparse.ArgumentTypeError(f"{text!r} names a strength twice")
    return alphas
