"""The options of a base behind an OpenAI-compatible API."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxytune.errors import OptionError, UnknownOptionError

if TYPE_CHECKING:
    from proxytune.roles import Role

_OPTIONS: dict[str, tuple[Any, str, str]] = {
    "top_logprobs": (int, "K", "log-probabilities per place (all, where the server gives them; else 20 or 5)"),
    "verification": (str, "WAY", "auto, prompt_logprobs, echo, prompts or single: how drafts are checked (auto)"),
    "max_requests": (int, "N", "budget of requests; rows that are not done then end, and --resume goes on"),
    "max_tokens": (int, "N", "budget of prompt and completion tokens, as the server counts them"),
    "requests_per_second": (float, "NUMBER", "no more than so many"),
    "max_in_flight": (int, "N", "requests at once (64)"),
    "timeout_s": (float, "SECONDS", "longest wait for an answer (60)"),
    "max_retries": (int, "N", "repetitions of a request that failed (5)"),
}


def add_remote_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = command.add_argument_group(
        "a base behind an API", "--base openai:MODEL with --base-url; expert and anti run here"
    )
    group.add_argument("--base-url", metavar="URL", help="of the API, as in http://localhost:8000/v1")
    group.add_argument(
        "--base-api-key-env", metavar="NAME", help="the environment variable that holds the key (OPENAI_API_KEY)"
    )
    for name, (kind, metavar, text) in _OPTIONS.items():
        group.add_argument(_flag(name), dest=f"base_{name}", type=kind, metavar=metavar, help=text)


def with_remote_settings(args: argparse.Namespace, base: "Role") -> "Role":
    """Return the base with what was said about its server.

    Raises:
        UnknownOptionError: Something was, and it is loaded here.
        OptionError: A value out of range, or the key's variable without the server that may have the key.
    """
    names = ("api_key_env", *_OPTIONS)
    given = {name: value for name in names if (value := getattr(args, f"base_{name}", None)) is not None}
    if not given:
        return base
    flag = _flag(next(iter(given)))
    if not base.is_remote:
        raise UnknownOptionError(
            f"{flag} is for a base behind an API: pass --base openai:MODEL and --base-url with it."
        )
    if "api_key_env" in given and not args.base_url:
        raise OptionError("--base-api-key-env names a key: say with --base-url, too, which server may have it.")
    return replace(base, source=replace(base.source, **given))


def _flag(name: str) -> str:
    return f"--base-{name.removesuffix('_s').replace('_', '-')}"
