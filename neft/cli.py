"""`neft`: the command line.

Standard output carries one JSON line with the result and nothing else; progress and messages go to stderr. Exit codes:
0 done, 2 something the user gave is wrong, 1 anything else.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import neft
from neft.commands import ablate, analyze, inspect, merge, pairs, reward, rl, train
from neft.config_file import add_config_option, with_config
from neft.errors import InputError, NoiseError
from neft.notices import is_first_process

_COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "merge": merge,
    "inspect": inspect,
    "analyze": analyze,
    "ablate": ablate,
    "pairs": pairs,
    "reward": reward,
    "rl": rl,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one sentence, with a traceback only under --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    try:
        parser, commands = _parser()
        if arguments and arguments[0] in commands:
            arguments = [arguments[0], *with_config(arguments[1:], commands[arguments[0]])]
        given = dict(vars(parser.parse_args(arguments)))
        del given["debug"]
        given.pop("config", None)
        _COMMANDS[given.pop("command")].run(given, is_quiet=given.pop("quiet"))
    except SystemExit as request:  # --help and --version
        return int(request.code or 0)
    except (InputError, NoiseError) as error:
        return _fail(f"neft: {error}", code=2, is_debug=is_debug, is_shared=True)
    except KeyboardInterrupt as interruption:
        reason = str(interruption) or "interrupted; nothing was written."
        return _fail(f"neft: {reason}", code=1, is_debug=is_debug, is_shared=True)
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split()) or type(error).__name__
        return _fail(f"neft: {reason} (--debug shows where)", code=1, is_debug=is_debug)
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints take the same way out as all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`.")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(prog="neft", description="NEFTune fine-tuning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"neft {neft.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        module.add_options(command)
        add_config_option(command)
        command.add_argument("--quiet", action="store_true", default=False, help="no progress bar, nothing on stdout")
        command.add_argument("--debug", action="store_true", default=False, help="show the traceback of an error")
    return parser, dict(commands.choices)


def _fail(message: str, *, code: int, is_debug: bool, is_shared: bool = False) -> int:
    """Reports an error; one that every process of a run has is reported by the first."""
    if is_debug:
        traceback.print_exc(file=sys.stderr)
    if not is_shared or is_first_process():
        sys.stderr.write(message + "\n")
    return code
