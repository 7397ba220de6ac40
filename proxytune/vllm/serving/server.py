"""Running vLLM's OpenAI server in this process, from the first check to the last process it started."""

import argparse
import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.vllm import compat
from proxytune.vllm.plugin import register
from proxytune.vllm.serving.engine_client import CheckedEngine
from proxytune.vllm.serving.middleware import CHATS
from proxytune.vllm.serving.role_engine import RoleEngine

_POLL_S = 0.05
_ADDRESS_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


def require_engine(args: argparse.Namespace) -> None:
    """Raise what is wrong with an engine's settings before anything is loaded.

    Raises:
        RuntimeUnsupportedError: Settings that do not go with a composite, or that vLLM refuses.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    compat.require_plugin()
    register()
    compat.choose_runner()
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (ValueError, RuntimeError) as error:
        raise RuntimeUnsupportedError(
            f"vLLM refuses these settings ({' '.join(str(error).split())[:300]}): change what stands behind `--`."
        ) from error
    compat.require_supported_engine(config)
    if getattr(args, CHATS, None) is not None:
        compat.require_role_prompts(config)


def serve(args: argparse.Namespace, ready: Callable[[str], None]) -> bool:
    """Serve until SIGINT or SIGTERM; return False if the engine ended before. `ready` is told the address.

    Raises:
        OptionError: The address cannot be taken.
        KeyboardInterrupt: A signal while the engine was starting.
    """
    import uvloop
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    try:
        address, sock = setup_server(args, reuse_port=False)
    except OSError as error:
        if error.errno not in _ADDRESS_ERRORS:
            raise
        raise OptionError(
            f"cannot listen on {args.host}:{args.port} ({error.strerror}): pass another --port."
        ) from error
    cli_env_setup()
    signal.signal(signal.SIGTERM, _interrupt)
    with sock:
        return bool(uvloop.run(_serve(args, address, sock, ready)))


async def _serve(args: argparse.Namespace, address: str, sock: socket.socket, ready: Callable[[str], None]) -> bool:
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client

    async with build_async_engine_client(args) as engine:
        announcing = asyncio.create_task(_announce(sock, address, ready))
        try:
            rest = await build_and_serve(RoleEngine(CheckedEngine(engine)), address, sock, args)
        finally:
            announcing.cancel()
    is_asked_for = compat.was_asked_to_stop(rest)
    await rest
    return is_asked_for


async def _announce(sock: socket.socket, address: str, ready: Callable[[str], None]) -> None:
    """Tell the address once the socket, bound since long, is listened on."""
    while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        await asyncio.sleep(_POLL_S)
    ready(address)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt("terminated.")
