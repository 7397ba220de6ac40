"""The options that say what runs the roles, and how: transformers in this process, or vLLM's engine."""

import argparse
import json
from typing import Any

from proxytune.errors import OptionError, UnknownOptionError

RUNTIMES = ("hf", "vllm", "auto")


def add_runtime_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = command.add_argument_group("runtime")
    group.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="hf",
        help="hf is transformers (the default); auto is vllm where it is installed, has a GPU, and can run these roles",
    )
    group.add_argument(
        "--engine-option",
        dest="engine_options",
        action="append",
        type=_engine_option,
        metavar="NAME=JSON",
        help="of vLLM's EngineArgs, as in tensor_parallel_size=2; may be repeated",
    )
    group.add_argument(
        "--speculation",
        type=_speculation,
        default="auto",
        metavar="auto|off|K",
        help="draft tokens with the expert: auto (the default) where it pays, off, or K at a time; same text, sooner",
    )
    group.add_argument("--draft", default="expert", metavar="MODEL", help="a smaller model that drafts for the expert")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return vLLM's engine options by name; none in a command that has no such option.

    Raises:
        OptionError: One was given twice.
        UnknownOptionError: They were given, and vLLM was not asked for.
    """
    options: dict[str, Any] = {}
    for name, value in getattr(args, "engine_options", None) or ():
        if name in options:
            raise OptionError(f"--engine-option {name} was given twice: give it once.")
        options[name] = value
    require_engine(args, "--engine-option", options)
    return options


def require_engine(args: argparse.Namespace, option: str, value: Any) -> None:
    """Raise UnknownOptionError for an option of vLLM's that was given a value although the runtime is hf."""
    if value and getattr(args, "runtime", "hf") == "hf":
        raise UnknownOptionError(f"{option} is vLLM's: pass --runtime vllm with it.")


def _speculation(text: str) -> Any:
    """Return auto, off, or a number of drafts."""
    if text in ("auto", "off"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not auto, off or a number of drafts above 0")


def _engine_option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=JSON."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON, as in tensor_parallel_size=2")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"the value {value!r} of {name} is not JSON: write a number, true, false, null, "
            f"or a text in double quotes, as in '{name}=\"...\"'"
        ) from error
