"""The playground as a server on this machine, for as long as the caller wants it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from proxytune.errors import OptionError
from proxytune.playground.comparison import Comparison
from proxytune.playground.page import Page, Setting
from proxytune.playground.policy import LocalOnly

if TYPE_CHECKING:
    from proxytune.generator import ProxyGenerator

_LOOPBACK = ("127.0.0.1", "localhost")
_MOST_WAITING = 32


@dataclass(frozen=True, kw_only=True)
class Address:
    """Host and port to listen on.

    Attributes:
        host: Of this machine; the default takes no requests from others.
        port: None is the first free one from 7860 on.
    """

    host: str = "127.0.0.1"
    port: int | None = None

    def __post_init__(self) -> None:
        """Check the port.

        Raises:
            OptionError: It is no port.
        """
        if self.port is not None and not 1 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}: it must be from 1 to 65535.")


@contextmanager
def serve(
    generator: "ProxyGenerator", setting: Setting, address: Address, *, opens_browser: bool = False
) -> Iterator[str]:
    """Yield the page's URL while the server runs: no share link, no analytics, nothing loaded from elsewhere.

    Raises:
        OptionError: The address is taken, or not one of this machine's.
    """
    blocks = Page(Comparison(generator), setting).blocks()
    blocks.queue(max_size=_MOST_WAITING, api_open=False)
    try:
        _, url, _ = blocks.launch(
            server_name=address.host,
            server_port=address.port,
            share=False,
            inbrowser=opens_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,  # nothing here takes a file
            app_kwargs={"middleware": _middleware(address)},
        )
    except OSError as error:
        where = f"{address.host}:{address.port or 'any port from 7860 on'}"
        raise OptionError(f"cannot listen on {where}: it is taken or not this machine's; choose --port.") from error
    try:
        yield url
    finally:
        blocks.close(verbose=False)


def _middleware(address: Address) -> list[Middleware]:
    """Return what every request goes through; on loopback no other site's name stands for this one (DNS rebinding)."""
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))] if address.host in _LOOPBACK else []
    return [*guard, Middleware(LocalOnly)]
