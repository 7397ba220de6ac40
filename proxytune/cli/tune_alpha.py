"""Choose alpha by the loss of held-out answers under the steered base, and write it into the proxy folder.

A JSONL row of input is {"prompt": ..., "completion": ...}, as `neft train` reads it, or {"prompt": ...,
"continuation": ...}. The end token is scored behind each completion that is text. The loss is convex in alpha, so the
grid is refined around its best value only. Alpha is only printed where roles are named, or a folder on the hub.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.cli.inputs import InputRow, add_input_arguments, read_rows
from proxytune.cli.role_arguments import add_role_arguments, choose_roles
from proxytune.cli.stderr import note
from proxytune.cli.trace import alpha_list
from proxytune.errors import InputError, OptionError

if TYPE_CHECKING:
    from proxytune.generator import ProxyGenerator

HELP = "choose alpha on held-out rows"
EXAMPLE = "  proxytune tune-alpha --model my-proxy-folder --prompts held_out.jsonl"

_GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_input_arguments(command, has_text=False)
    grid = ",".join(f"{alpha:g}" for alpha in _GRID)
    command.add_argument("--alphas", type=alpha_list, default=_GRID, metavar="A,B,…", help=f"the grid ({grid})")
    command.add_argument(
        "--refinements", type=int, default=3, metavar="N", help="how often the distance to the neighbours is halved (3)"
    )
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="most rows in one batch (16)")
    add_role_arguments(command, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Measure each α, print the table, then write the best one; with several pairs, one pair after the other."""
    for name, least in (("batch_size", 1), ("refinements", 0)):
        if getattr(args, name) < least:
            raise OptionError(f"{name} is {getattr(args, name)}: it must be a whole number of at least {least}.")
    choice = choose_roles(args)
    rows = read_rows(args, has_continuation=True)
    if any(row.alpha is not None for row in rows):
        raise InputError("a row has an alpha of its own, which is what is to be chosen: leave it out.")
    alphas = list(choice.alphas)
    with choice.loaded() as generator:
        for index in range(len(alphas)):

            def loss(alpha: float, index: int = index) -> float:
                return nats_per_token(generator, rows, [*alphas[:index], alpha, *alphas[index + 1 :]], args.batch_size)

            losses = search(loss, [*args.alphas, alphas[index]], num_refinements=args.refinements)
            alphas[index] = min(losses, key=losses.__getitem__)
            title = "alpha" if len(alphas) == 1 else f"alpha of pair {index + 1}"
            sys.stdout.write(_table(title, losses, alphas[index]))
            sys.stdout.flush()
    chosen = ", ".join(f"{alpha:g}" for alpha in alphas)
    folder = getattr(args, "model", None)
    if folder and Path(folder).expanduser().is_dir():
        from proxytune.hf.folder import write_alphas

        write_alphas(Path(folder).expanduser(), alphas)
        note(f"alpha {chosen} is in {folder!r} now.")
    else:
        note(f"the best is alpha {chosen}: pass it with --alpha, to `proxytune save` too.")
    return 0


def search(loss: Callable[[float], float], grid: Iterable[float], *, num_refinements: int) -> dict[float, float]:
    """Return the loss of every α tried: the grid, then points halfway from the best one to its neighbours, repeatedly.

    >>> losses = search(lambda alpha: (alpha - 1.3) ** 2, [0.0, 1.0, 2.0], num_refinements=2)
    >>> min(losses, key=losses.get), sorted(losses)
    (1.25, [0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0])
    """
    losses = {alpha: loss(alpha) for alpha in sorted(set(grid))}
    for _ in range(num_refinements):
        tried = sorted(losses)
        best = tried.index(min(tried, key=losses.__getitem__))
        neighbours = [tried[index] for index in (best - 1, best + 1) if 0 <= index < len(tried)]
        losses |= {alpha: loss(alpha) for alpha in [(tried[best] + other) / 2 for other in neighbours]}
    return losses


def nats_per_token(
    generator: "ProxyGenerator", rows: Sequence[InputRow], alphas: Sequence[float], batch_size: int
) -> float:
    """Return the steered cross-entropy of the rows' answers, each with its end token, over all their tokens."""
    end = generator.tokenizer.eos_token or ""
    answers = [row.continuation + end if isinstance(row.continuation, str) else row.continuation for row in rows]
    alpha = [list(alphas)] * len(rows)
    scores = generator.score([row.prompt for row in rows], answers, alpha=alpha, batch_size=batch_size)
    return -sum(score.total for score in scores) / sum(len(score.logprobs) for score in scores)


def _table(title: str, losses: dict[float, float], best: float) -> str:
    lines = [f"{title:<16}nats per token"]
    lines += [f"{alpha:<16g}{losses[alpha]:.4f}{' <' if alpha == best else ''}" for alpha in sorted(losses)]
    return "\n".join(lines) + "\n"
