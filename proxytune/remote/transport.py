"""One HTTP request and its answer, within a time; what may come right by itself is a TransientError."""

import contextlib
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import unicodedata
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from proxytune.errors import OptionError, ProxyTuneWarning, RemoteError
from proxytune.remote.settings import RemoteSettings

_MOST_WORDS = 200  # of a server's own that go into an error, in characters
_IDLE_S = 30.0  # a connection is kept while the small models work
_PASSING = (408, 429)


class TransientError(Exception):
    """A request that failed and may work the next time.

    Attributes:
        status: The answer's, None where there was none.
        retry_after: The answer's header.
        may_have_cost: Whether the server may have worked on it.
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
    """Connections to one server, shared by all threads and kept alive between requests."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_closed = False
        limits = httpx.Limits(
            max_connections=settings.max_in_flight,
            max_keepalive_connections=settings.max_in_flight,
            keepalive_expiry=_IDLE_S,
        )
        self._client = httpx.Client(timeout=settings.timeout_s, limits=limits, follow_redirects=False)
        self._warn_of_open_key()

    def exchange(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        """Return the JSON that the server answers with.

        Raises:
            TransientError: It may work the next time.
            RemoteError: It will not; the text has the server's words, without the key.
        """
        reply = self._reply(method, url, body)
        if 200 <= reply.status < 300:
            try:
                return json.loads(reply.body)
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
        """End all connections; who waits for an answer hears of it at once."""
        with self._lock:
            self._is_closed = True
            sockets = list(self._sockets)
        for each in sockets:
            # Closing alone would not wake a thread that reads from it.
            with contextlib.suppress(OSError, ValueError):
                each.shutdown(socket.SHUT_RDWR)
        self._client.close()

    def _reply(self, method: str, url: str, body: Mapping[str, Any] | None) -> _Reply:
        """Return a whole answer, whatever its status."""
        deadline = time.monotonic() + self._settings.timeout_s
        with self._errors_named():
            request = self._client.build_request(
                method, url, json=body, headers=self._headers(), extensions={"trace": self._trace}
            )
            with contextlib.closing(self._client.send(request, stream=True)) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > deadline:
                        raise TransientError(f"no whole answer within timeout_s={self._settings.timeout_s:g}")
                return _Reply(response.status_code, response.headers, b"".join(parts))

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turn what httpx raises into a TransientError, or a RemoteError where trying again is no use."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise TransientError(f"no answer within timeout_s={self._settings.timeout_s:g}") from error
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

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember every connection that is opened."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(opened)
                is_late = self._is_closed
            if is_late:
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)

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
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else text
