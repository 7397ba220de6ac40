"""One exchange ends within its time and its size, whatever a server does with the bytes."""

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from proxytune.errors import RemoteError
from proxytune.remote.settings import RemoteSettings
from proxytune.remote.transport import TransientError, Transport

_PAUSE_S = 0.05


def _drip_headers(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.sendall(b"x: y\r\n")
        time.sleep(_PAUSE_S)


def _endless_hints(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(_PAUSE_S)


def _empty_gzip_blocks(peer: socket.socket) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    peer.sendall(head + b"a\r\n\x1f\x8b\x08\0\0\0\0\0\0\xff\r\n")
    while True:
        peer.sendall(b"5\r\n\0\0\0\xff\xff\r\n")
        time.sleep(_PAUSE_S)


def _drip_body(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        peer.sendall(b" ")
        time.sleep(_PAUSE_S)


def _gzip_bomb(peer: socket.socket) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(300)) + packer.flush()
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(data) + data)


def _brotli(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 3\r\n\r\nabc")


@contextmanager
def _transport(play: Callable[[socket.socket], None], timeout_s: float) -> Iterator[Transport]:
    """Yield a transport to a server that answers its first request so."""

    def serve() -> None:
        peer, _ = listener.accept()
        with suppress(OSError):
            peer.recv(65536)
            play(peer)
            while peer.recv(65536):  # the rest of the request, and then until the client leaves
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        transport = Transport(RemoteSettings(model="m", base_url=url, timeout_s=timeout_s, api_key_env=None))
        try:
            yield transport
        finally:
            transport.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("play", [_drip_headers, _endless_hints, _empty_gzip_blocks, _drip_body])
def test_a_server_that_never_ends_is_left(play: Callable[[socket.socket], None]) -> None:
    """The time-out is that of the whole answer, also where something keeps coming."""
    with _transport(play, 0.3) as transport, pytest.raises(TransientError, match=r"timeout_s=0\.3"):
        transport.exchange("POST", f"{transport._settings.base_url}/completions", {})


def test_an_answer_that_unfolds_without_end_is_refused() -> None:
    """A small answer that unpacks to 300 MiB is an error, and not one to try again."""
    with _transport(_gzip_bomb, 60.0) as transport, pytest.raises(RemoteError, match="more than 256 MiB"):
        transport.exchange("POST", f"{transport._settings.base_url}/completions", {})


def test_an_encoding_that_was_not_asked_for_is_refused() -> None:
    """Only what can be unpacked within bounds is read."""
    with _transport(_brotli, 60.0) as transport, pytest.raises(RemoteError, match="encoding 'br'"):
        transport.exchange("POST", f"{transport._settings.base_url}/completions", {})
