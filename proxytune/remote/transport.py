"""One HTTP request and its answer, within a time and a size; what may come right by itself is a TransientError."""

import asyncio
import contextlib
import ipaddress
import json
import os
import ssl
import threading
import unicodedata
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from proxytune.errors import OptionError, ProxyTuneWarning, RemoteError
from proxytune.remote.settings import RemoteSettings

_MOST_WORDS = 200  # of a server's own that go into an error, in characters
_IDLE_S = 30.0  # a connection is kept while the small models work
_PASSING = (408, 429)
_ENCODINGS = ("", "identity", "gzip", "deflate")
_MOST_BYTES = 256 << 20  # of an answer, unpacked: a vocabulary of 262,144 at 20 positions takes about as much
_FAREWELL_S = 2.0

_T = TypeVar("_T")


class TransientError(Exception):
    """A request that failed and may work the next time.

    Attributes:
        status: The answer's, None where there was none.
        retry_after: The answer's header.
        may_have_cost: True if the server may have worked on it.
    """

    def __init__(
        self, text: str, *, status: int | None = None, retry_after: str | None = None, may_have_cost: bool = True
    ) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after
        self.may_have_cost = may_have_cost


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to one server, kept alive between requests, and the thread whose event loop uses them."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        limits = httpx.Limits(
            max_connections=settings.max_in_flight,
            max_keepalive_connections=settings.max_in_flight,
            keepalive_expiry=_IDLE_S,
        )
        # The deadline is that of the exchange: a time-out per read never ends for a server that drips.
        self._client = httpx.AsyncClient(
            timeout=None, limits=limits, follow_redirects=False, headers={"Accept-Encoding": "gzip, deflate"}
        )
        self._warn_of_open_key()
        self._is_closed = False
        self._lock = threading.RLock()  # a client may be collected, and so closed, by whoever holds it
        self._loop = asyncio.new_event_loop()
        # A daemon: Python waits for others at exit, so Ctrl-C would hang for as long as a server stalls.
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="proxytune-remote", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Return the future of a coroutine in the transport's thread; after `close`, it has a RemoteError."""
        with self._lock:  # what is scheduled behind the end of the loop would wait for ever
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(self._until_closed(work), self._loop)
        work.close()
        late: Future[_T] = Future()
        late.set_exception(_closed_error())
        return late

    def exchange(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        """Return what `send` does, from any thread but the transport's."""
        return self.submit(self.send(method, url, body)).result()

    async def send(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        """Return the JSON that the server answers with.

        Raises:
            TransientError: It may work the next time.
            RemoteError: It will not; the text has the server's words, without the key.
        """
        reply = await self._reply(method, url, body)
        if 200 <= reply.status < 300:
            try:
                return await asyncio.to_thread(json.loads, reply.body)
            except (ValueError, RecursionError) as error:
                raise TransientError(
                    f"an answer that is not JSON, of {len(reply.body)} bytes", status=reply.status
                ) from error
        words = self.clean(_message(reply.body))
        if reply.status in _PASSING or reply.status >= 500:
            raise TransientError(
                f"{reply.status} ({words})",
                status=reply.status,
                retry_after=reply.headers.get("retry-after"),
                may_have_cost=False,
            )
        raise RemoteError(self._refusal(url, reply, words), status=reply.status)

    def clean(self, text: str) -> str:
        """Return a text of the server's in one short line, without control characters and without the key."""
        key = self._key()
        shown = text.replace(key, "***") if key else text
        shown = "".join(" " if unicodedata.category(letter).startswith(("C", "Z")) else letter for letter in shown)
        shown = " ".join(shown.split())
        return shown if len(shown) <= _MOST_WORDS else shown[: _MOST_WORDS - 1] + "…"

    def close(self) -> None:
        """End all connections; who waits for an answer gets a RemoteError."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._loop.create_task, self._shut())
        if self._thread is not threading.current_thread():
            self._thread.join(_FAREWELL_S)

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        await self._loop.shutdown_default_executor()
        self._loop.stop()

    async def _until_closed(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_closed:
                raise _closed_error() from None
            raise

    async def _reply(self, method: str, url: str, body: Mapping[str, Any] | None) -> _Reply:
        """Return a full answer, whatever its status."""
        content = bytearray()
        with self._errors_named():
            async with (
                asyncio.timeout(self._settings.timeout_s),
                self._client.stream(method, url, json=body, headers=self._headers()) as response,
            ):
                encoding = response.headers.get("content-encoding", "").lower()
                if encoding not in _ENCODINGS:
                    raise RemoteError(f"{url} answers in the encoding {encoding!r}, which was not asked for.")
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _MOST_BYTES:
                        raise RemoteError(
                            f"{url} answers with more than {_MOST_BYTES >> 20} MiB: ask for fewer log-probabilities "
                            "by top_logprobs, or check the server."
                        )
                return _Reply(response.status_code, response.headers, bytes(content))

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turn what httpx raises into a TransientError, or a RemoteError where trying again is no use."""
        try:
            yield
        except TimeoutError as error:
            raise TransientError(f"no whole answer within timeout_s={self._settings.timeout_s:g}") from error
        except httpx.InvalidURL as error:
            raise RemoteError(f"base_url is {self._settings.base_url!r}, which is no URL ({error}).") from error
        except httpx.HTTPError as error:
            if (reason := _certificate_error(error)) is not None:
                raise RemoteError(
                    f"the certificate of {self._settings.base_url} is not trusted ({self.clean(reason)}): "
                    "SSL_CERT_FILE can name a file with your own authority's."
                ) from error
            is_unsent = isinstance(error, httpx.ConnectError)
            words = self.clean(str(error)) or type(error).__name__
            text = f"no connection ({words})" if is_unsent else f"a broken connection ({words})"
            raise TransientError(text, may_have_cost=not is_unsent) from error

    def _headers(self) -> dict[str, str]:
        """Return the key's header, if there is a key.

        Raises:
            OptionError: It cannot stand in a header; the text does not show it.
        """
        key = self._key()
        if not key:
            return {}
        if not key.isascii() or not key.isprintable() or " " in key:
            raise OptionError(
                f"the key in {self._settings.api_key_env} has characters that no key has: export it anew, without "
                "spaces or line breaks."
            )
        return {"Authorization": f"Bearer {key}"}

    def _key(self) -> str:
        """Return the key as the environment has it now, nothing where there is none or none is to be sent."""
        name = self._settings.api_key_env
        return "" if name is None else os.environ.get(name, "").strip()

    def _refusal(self, url: str, reply: _Reply, words: str) -> str:
        if 300 <= reply.status < 400:
            where = self.clean(reply.headers.get("location", "elsewhere"))
            return f"{url} sends on to {where} ({reply.status}), and redirects are not followed: give that as base_url."
        if reply.status in (401, 403):
            name = self._settings.api_key_env
            if name is None:
                return f"{url} refuses access ({reply.status}: {words}): no key was to be sent; name this URL yourself."
            state = "is not accepted" if self._key() else "is not set"
            return f"{url} refuses access ({reply.status}: {words}): the key in {name} {state}."
        return f"{url} refuses the request ({reply.status}: {words})."

    def _warn_of_open_key(self) -> None:
        parts = urlsplit(self._settings.base_url)
        if parts.scheme == "http" and self._headers() and not _is_loopback(parts.hostname or ""):
            warnings.warn(
                f"the key in {self._settings.api_key_env} goes to {parts.hostname} over plain http, where others can "
                "read it: use https.",
                ProxyTuneWarning,
                stacklevel=2,
            )


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped; the thread holds the loop alone, so that a client nobody holds can end."""
    loop.run_forever()
    loop.close()


def _closed_error() -> RemoteError:
    return RemoteError("the connection to the base's server was closed: make a new generator to go on.")


def _certificate_error(error: BaseException | None) -> str | None:
    """Return what is wrong with the server's certificate, None if that is not what failed."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _message(body: bytes) -> str:
    """Return what an answer says in words, whichever of the usual forms it has."""
    text = body[:100_000].decode(errors="replace")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(message, Mapping) and message.get(name):
            message = message[name]
    return message if isinstance(message, str) else text
