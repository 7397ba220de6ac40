"""The options of decoding, as `GenerationOptions` has them, shared by `generate` and `chat`."""

import argparse
from typing import Any

from proxytune.options import GenerationOptions

_SHARED = {
    "--max-new-tokens": (int, "N", "most tokens per answer (256; in chat 512)"),
    "--temperature": (float, "NUMBER", "0 is greedy (the default); above 0 samples"),
    "--top-p": (float, "NUMBER", "nucleus in (0, 1]"),
    "--top-k": (int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "--min-p": (float, "NUMBER", "drop tokens less likely than this times the likeliest"),
    "--repetition-penalty": (float, "NUMBER", "above 1 discourages what was already said"),
    "--seed": (int, "N", "of the draws; without it every run draws anew"),
}
_BATCHED = {
    "--num-beams": (int, "N", "above 1 is beam search"),
    "--length-penalty": (float, "NUMBER", "exponent on length in beam scores"),
    "--num-return-sequences": (int, "N", "answers per prompt"),
    "--batch-size": (int, "N", "most rows in one batch (32); halved by itself when memory runs out"),
}


def add_decoding_arguments(command: argparse.ArgumentParser, *, is_batched: bool) -> None:
    """Add the options; those about several answers or prompts only where `is_batched`."""
    group = command.add_argument_group("decoding")
    for name, (kind, metavar, text) in (_SHARED | (_BATCHED if is_batched else {})).items():
        group.add_argument(name, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="a text that ends the answer, not part of it; may be repeated"
    )
    group.add_argument("--ignore-eos", action="store_const", const=True, help="go on to --max-new-tokens in any case")
    if is_batched:
        text = "log-probabilities of the tokens under the combined distribution, and of the K likeliest at each place"
        group.add_argument("--logprobs", type=int, nargs="?", const=0, metavar="K", help=text)
        text = "add to each row's timing what decoding did: tokens per second and cycle, acceptance, seconds per role"
        group.add_argument("--stats", action="store_const", const=True, help=text)


def decoding_options(args: argparse.Namespace, **defaults: Any) -> dict[str, Any]:
    """Return keyword arguments for `generate`, checked; `seed` is left out, for it is settled per row.

    Raises:
        OptionError: One is out of range, or two do not go together.
    """
    names = [name[2:].replace("-", "_") for name in (*_SHARED, *_BATCHED)]
    names = [name for name in (*names, "stop", "ignore_eos", "logprobs", "stats") if name != "seed"]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    options = defaults | given
    GenerationOptions.from_kwargs(options)
    return options
