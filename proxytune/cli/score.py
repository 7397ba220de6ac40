"""Give the log-probabilities of continuations under the combined distribution.

A JSONL row of input is {"prompt": ..., "continuation": text or token ids}, optionally with "id" and "alpha".
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from proxytune.cli.fingerprint import settings_of
from proxytune.cli.generate import given_fields, row_alphas
from proxytune.cli.inputs import InputRow, add_input_arguments, read_rows
from proxytune.cli.outputs import Sink, add_output_arguments, open_sink
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.rows import Expected, finite, json_line
from proxytune.cli.stderr import is_watched
from proxytune.errors import OptionError

if TYPE_CHECKING:
    from proxytune.completion import Score

HELP = "log-probabilities of continuations"
EXAMPLE = """\
  echo '{"prompt": "The capital of Bhutan is", "continuation": " Thimphu"}' |
      proxytune score --model my-proxy-folder"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_input_arguments(command, has_text=False)
    add_output_arguments(command)
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="most rows in one batch (16)")
    add_role_arguments(command, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Score every row; whatever can be checked without the models is checked before they load."""
    if args.batch_size < 1:
        raise OptionError(f"batch_size is {args.batch_size}: it must be a whole number of at least 1.")
    choice = choose_roles(args)
    rows = read_rows(args, has_continuation=True)
    given = [given_fields(row, choice) for row in rows]
    with open_sink(args, Expected(given=given), partial(settings_of, choice, "score", None)) as sink:
        todo = [row for row in rows if row.index not in sink.done]
        try:
            if todo:
                _score(args, choice, todo, given, sink)
            sink.finish()
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(sink.interruption()) from interruption
    return 0


def _score(
    args: argparse.Namespace,
    choice: RoleChoice,
    rows: Sequence[InputRow],
    given: Sequence[dict[str, Any]],
    sink: Sink,
) -> None:
    has_progress = is_watched() if args.progress is None else args.progress
    with choice.loaded() as generator, tqdm(total=len(rows), disable=not has_progress, unit="row", desc="score") as bar:
        sink.begin()
        scores = generator.score_as_done(
            [row.prompt for row in rows],
            [row.continuation for row in rows],
            alpha=[row_alphas(row, choice) for row in rows],
            batch_size=args.batch_size,
        )
        # Whole batches, so that a resumed run decodes the rest in the batches of an uninterrupted one; vLLM has none.
        while part := list(islice(scores, 1 if generator.runtime == "vllm" else args.batch_size)):
            sink.write(
                [json_line(_fields(rows[position], score, given[rows[position].index])) for position, score in part]
            )
            bar.update(len(part))


def _fields(row: InputRow, score: "Score", given: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": row.index,
        **given,
        "total": finite(score.total),
        "logprobs": [finite(value) for value in score.logprobs],
        "token_ids": score.token_ids,
        "is_greedy": score.is_greedy,
    }
