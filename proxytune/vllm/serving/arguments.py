"""The arguments of vLLM's server: its own, given behind `--`, and those that the composite decides."""

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from proxytune.errors import OptionError
from proxytune.requests import RequestBuilder
from proxytune.vllm.composite import VllmComposite
from proxytune.vllm.engine import engine_arguments
from proxytune.vllm.serving.chat_template import chat_template
from proxytune.vllm.serving.middleware import ADDS_SPECIAL_TOKENS, CHATS, RequestRules

RULES = f"{RequestRules.__module__}.{RequestRules.__qualname__}"

GRACE_S = 20  # in which requests in flight may finish after SIGTERM; then they are ended

_OURS = {
    "api_key": "--api-key-file FILE, or PROXYTUNE_API_KEY in the environment: anyone can read a command line",
    "host": "--host, before the `--`",
    "port": "--port, before the `--`",
    "served_model_name": "--served-model-name, before the `--`",
    "tokenizer": "--tokenizer, before the `--`",
    "model_tag": "a proxy folder, or --base, --expert and --anti, before the `--`",
    "headless": "vLLM's own server for this",
    "grpc": "vLLM's own server for this",
    "config": "the options themselves",
    "api_server_count": "a reverse proxy before several servers",
}
_FROM_COMPOSITE = ("model", "hf_overrides", "logits_processors", "skip_tokenizer_init", "dtype", "max_logprobs")
_SAME = ("revision", "generation_config", "override_generation_config")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of `proxytune serve` itself.

    Attributes:
        host: Address to listen on.
        port: Likewise.
        served_model_name: Under which clients name the model.
        api_key: Key that clients must send, None for no check.
        tokenizer: Folder or hub id of the tokenizer.
        tokenizer_revision: Of that.
        prompt_format: Of chats, as the base reads them.
        chats: Encodes chats for each role; None where all read them alike.
        eos_token_ids: Ids that end a completion.
        trust_remote_code: Of the tokenizer.
    """

    host: str
    port: int
    served_model_name: str
    api_key: str | None
    tokenizer: str
    tokenizer_revision: str | None
    prompt_format: str
    eos_token_ids: tuple[int, ...]
    chats: RequestBuilder | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise OptionError(f"--port is {self.port}: it must be from 1 to 65535.")


class PassedOn:
    """vLLM's own options, parsed by vLLM."""

    def __init__(self, given: Sequence[str]) -> None:
        """Parse what stood behind `--`.

        Raises:
            OptionError: vLLM does not know one, or it is the composite's or `proxytune serve`'s to decide.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs

        parser = _parser()
        default = vars(parser.parse_args([]))
        self.args = _parsed(parser, given)
        changed = {name: value for name, value in vars(self.args).items() if value != default[name]}
        for name in (*_OURS, *_FROM_COMPOSITE, *_SAME):
            if name in changed:
                way_out = f"use {_OURS[name]}" if name in _OURS else "leave it out: base, expert and anti decide it"
                raise OptionError(f"--{name.replace('_', '-')} behind `--`: {way_out}.")
        names = {field.name for field in fields(AsyncEngineArgs)}
        self.engine_options: Mapping[str, Any] = {name: value for name, value in changed.items() if name in names}
        self.changed = frozenset(changed)

    def arguments(self, composite: VllmComposite, settings: ServerSettings) -> argparse.Namespace:
        """Return the arguments of vLLM's server over a composite; its `engine_options` are those found here."""
        if settings.chats is not None and "chat_template" in self.changed:
            raise OptionError(
                "--chat-template behind `--` is one for all, and base, expert and anti read chats in formats of their "
                "own: leave it out, or give all roles one format."
            )
        server_arguments = dict(engine_arguments(composite))
        server_arguments |= {
            "skip_tokenizer_init": False,
            "tokenizer": settings.tokenizer,
            "tokenizer_revision": settings.tokenizer_revision,
            "trust_remote_code": settings.trust_remote_code,
            "override_generation_config": {"eos_token_id": list(settings.eos_token_ids)},
            "disable_log_stats": self.args.disable_log_stats,
            "host": settings.host,
            "port": settings.port,
            "served_model_name": [settings.served_model_name],
            "api_key": None if settings.api_key is None else [settings.api_key],
            CHATS: settings.chats,
            "middleware": [*self.args.middleware, RULES],
        }
        if "shutdown_timeout" not in self.changed:
            server_arguments["shutdown_timeout"] = GRACE_S
        if "use_tqdm_on_load" not in self.changed:
            server_arguments["use_tqdm_on_load"] = False
        if "uvicorn_log_level" not in self.changed:
            server_arguments["uvicorn_log_level"] = "warning"
        if "chat_template" not in self.changed:
            template = chat_template(settings.prompt_format)
            server_arguments |= {"chat_template": template, ADDS_SPECIAL_TOKENS: template is not None}
        return argparse.Namespace(**{**vars(self.args), **server_arguments})


def _parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="proxytune serve … --"))


def _parsed(parser: Any, given: Sequence[str]) -> Any:
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.exceptions import VLLMValidationError

    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            args = parser.parse_args(list(given))
        validate_parsed_serve_args(args)
    except SystemExit as request:
        if not request.code:
            raise
        reason = heard.getvalue().strip().splitlines()[-1].partition("error: ")[2] or heard.getvalue()
        raise OptionError(f"vLLM's server refuses what stands behind `--` ({reason.strip().rstrip('.')}).") from request
    except (TypeError, ValueError, VLLMValidationError) as error:
        raise OptionError(f"vLLM's server refuses what stands behind `--` ({str(error).rstrip('.')}).") from error
    return args
