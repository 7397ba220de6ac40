"""Options from a file: `--config FILE`, a YAML mapping from a command's options to their values."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxytune.errors import OptionError

_OPTION = "--config"


def add_config_argument(command: argparse.ArgumentParser) -> None:
    """Add the option."""
    text = "a YAML file of options by name, as in `max-new-tokens: 64`; what is said on the command line counts first"
    command.add_argument(_OPTION, metavar="FILE", help=text)


def with_config(arguments: Sequence[str], command: argparse.ArgumentParser) -> list[str]:
    """Return a command's arguments and, after them, those that its file adds; the parser checks them alike.

    Raises:
        OptionError: The file cannot be read, or is no mapping.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(_OPTION)
    try:
        path = finder.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError:  # without a file's name, which the command's own parser says
        path = None
    if path is None:
        return list(arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    options = {f"--{name.replace('_', '-')}": value for name, value in _read(path).items()}
    added = (_tokens(option, value, command) for option, value in options.items() if option not in given)
    return [*arguments, *(token for tokens in added for token in tokens)]


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        entry = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"the file {path!r} of --config cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(entry, dict) or not all(isinstance(name, str) for name in entry):
        raise OptionError(f"the file {path!r} of --config is no mapping: write a line `option: value` for each option.")
    return entry


def _tokens(option: str, value: Any, command: argparse.ArgumentParser) -> list[str]:
    """Return an option as it would be typed; a list stands for a repeated option, or for its several values."""
    action = next((action for action in command._actions if option in action.option_strings), None)
    if value is None or action is None:
        return [] if value is None else [option]  # an unknown one, of which the parser tells the nearest
    if isinstance(value, bool) and (action.nargs in (0, "?") or isinstance(action, argparse.BooleanOptionalAction)):
        negation = f"--no-{option.removeprefix('--')}"
        return [option] if value else [negation] if negation in action.option_strings else []
    if not isinstance(value, list):
        return [f"{option}={_text(value)}"]
    if action.nargs in ("+", "*"):
        return [option, *map(_text, value)]
    is_repeated = isinstance(action, argparse._AppendAction)
    return [f"{option}={_text(item)}" for item in value] if is_repeated else [f"{option}={','.join(map(_text, value))}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
