"""The parser of all commands."""

import argparse
import difflib
from collections.abc import Sequence

import proxytune
from proxytune.cli import bench, chat, demo, doctor, generate, playground, report, save, score, serve, trace, tune_alpha
from proxytune.cli.argument_parser import Parser
from proxytune.cli.config_file import add_config_argument, with_config
from proxytune.errors import UnknownOptionError

_COMMANDS = (generate, chat, score, trace, report, playground, serve, save, tune_alpha, demo, doctor)
_DESCRIPTION = "Steer a frozen base model at decode time by the difference of a small tuned and untuned pair."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments; `run` in them is the command itself.

    Raises:
        OptionError: A value that cannot be read, or something missing.
        UnknownOptionError: An option that does not exist.
    """
    parser, commands = _parser()
    if arguments[:1] == ["bench"]:  # its options, --help too, are the benchmarks' own
        return argparse.Namespace(command="bench", run=bench.run, arguments=list(arguments[1:]))
    cli_arguments, passed_on = serve.split(arguments)
    if cli_arguments and cli_arguments[0] in commands:
        cli_arguments = [cli_arguments[0], *with_config(cli_arguments[1:], commands[cli_arguments[0]])]
    args, unknown = parser.parse_known_args(cli_arguments)
    if unknown:
        raise UnknownOptionError(_unknown_text(unknown[0], commands[args.command]))
    args.server_options = passed_on
    return args


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="proxytune",
        description=_DESCRIPTION,
        epilog="`proxytune COMMAND --help` shows a command's options, with an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"proxytune {proxytune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    parsers = {}
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=f"example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        add_config_argument(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks and other libraries' messages")
        command.set_defaults(run=module.run)
        parsers[name] = command
    commands.add_parser("bench", help=bench.HELP, add_help=False)
    return parser, parsers


def _unknown_text(option: str, command: Parser) -> str:
    known = [name for action in command._actions for name in action.option_strings]
    near = difflib.get_close_matches(option.partition("=")[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see `{command.prog} --help`."
    return f"unknown option {option!r}: {hint}"
