"""Options that several commands take in the same way as `neft train`."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from neft.commands import train

DATA = (
    *("format", "template", "chat_template", "columns", "text_column", "dataset_split"),
    *("loss_on", "max_length", "overlong", "on_bad_row"),
)
HELD_OUT = ("eval_data", "eval_fraction")


def borrow(parser: argparse.ArgumentParser, title: str, names: Collection[str]) -> None:
    """Adds those of train's options, with their help, under a title."""
    group = parser.add_argument_group(title)
    for action in _train_options():
        if action.dest in names:
            group._add_action(action)


def borrow_all(parser: argparse.ArgumentParser, title: str, *, but: Collection[str]) -> None:
    """Adds all of train's options with those exceptions."""
    borrow(parser, title, {action.dest for action in _train_options()} - set(but))


def numbers(text: str) -> tuple[float, ...]:
    """Returns the numbers of a comma-separated list.

    >>> numbers("0,2.5, 5")
    (0.0, 2.5, 5.0)
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,5,10") from error


def _train_options() -> list[argparse.Action]:
    source = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    train.add_options(source)
    return source._actions
