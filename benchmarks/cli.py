"""`proxytune bench …` and `python -m benchmarks …`: benchmarks of base, expert and the steered base.

Standard output carries results and nothing else. Exit codes: 0 done, 2 something the user gave is wrong, 1 anything
else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.registry import COMMANDS, PROGRAMS, TASKS
from proxytune.cli.argument_parser import Parser
from proxytune.cli.config_file import add_config_argument, with_config
from proxytune.cli.stderr import note, quiet_libraries
from proxytune.errors import ProxyTuneError, UnknownOptionError

_RESUMING = "interrupted; the same command with --resume goes on, if it had an --output folder."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one sentence, with a traceback only under --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SystemExit as request:  # --help
        return int(request.code or 0)
    except KeyboardInterrupt:
        note(_RESUMING)
        return 1
    except ProxyTuneError as error:
        if "--debug" in arguments:
            raise
        note(str(error))
        return 2


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in PROGRAMS:
        entry = PROGRAMS[name]
        code: int = import_module(entry.module).main([*entry.arguments, *arguments[1:]])
        return code
    parser, command = _parser(name)
    given = arguments if command is None else [name, *with_config(arguments[1:], command)]
    options, unknown = parser.parse_known_args(given)
    if unknown:
        raise UnknownOptionError(f"unknown option {unknown[0]!r}: see `proxytune bench {name} --help`.")
    with quiet_libraries(is_debug=options.debug):
        code = options.run(options)
    sys.stdout.flush()
    return code


def _parser(chosen: str) -> tuple[Parser, Parser | None]:
    """Return the parser, and that of the chosen command, the only one whose module is imported."""
    chosen_parser = None
    parser = Parser(prog="proxytune bench", description=__doc__.partition("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, entry in {**TASKS, **COMMANDS, **PROGRAMS}.items():
        module = import_module(entry.module) if name == chosen else None
        command = commands.add_parser(
            name,
            help=entry.help,
            description=module.__doc__ if module else None,
            epilog=_epilog(module),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if module is not None:
            chosen_parser = command
            _fill(command, name, module)
    return parser, chosen_parser


def _fill(command: Parser, name: str, module: Any) -> None:
    if name in TASKS:
        from benchmarks import task_command  # it imports torch, and the list of commands need not

        task_command.add_arguments(command, module)
        command.set_defaults(run=partial(task_command.run, task=module, name=name))
    else:
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    add_config_argument(command)
    command.add_argument("--debug", action="store_true", help="show tracebacks and other libraries' messages")


def _epilog(module: Any) -> str | None:
    example = getattr(module, "EXAMPLE", None)
    return None if example is None else f"example:\n{example}"
