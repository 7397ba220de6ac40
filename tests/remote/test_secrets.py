"""The key reaches the server and nothing else; only servers with a certificate that counts are talked to."""

import datetime
import ipaddress
import logging
import ssl
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from proxytune.errors import OptionError, ProxyTuneError, ProxyTuneWarning, RoleError
from proxytune.remote.settings import RemoteSettings
from proxytune.remote.transport import Transport
from tests.remote.clients import VirtualClock, answers, client, queries, server
from tests.remote.faulty_proxy import FaultyProxy

KEY = "sk-of-the-remote-tests-0815"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment."""
    monkeypatch.setenv("REMOTE_TEST_KEY", KEY)
    return "REMOTE_TEST_KEY"


def test_key_is_sent_and_shown_nowhere(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every request carries it; no repr, log line or error has it, also not where the server sends it back."""
    caplog.set_level(logging.DEBUG)
    with server(key=KEY) as found, FaultyProxy(found.url, is_active=False) as proxy:
        model = client(proxy.url, clock=VirtualClock(), api_key_env=key, max_retries=1)
        answers(model, queries())
        assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in found.recorded)
        proxy.script, proxy.is_active = ("drop",) * 99, True
        shown = [repr(model.settings), repr(model), repr(model.usage), str(vars(model.settings))]
        shown += [_chain(future.exception(timeout=60)) for future in model.submit(queries()[:1])]
        proxy.is_active = False
        found.key = "another"
        shown += [_chain(future.exception(timeout=60)) for future in model.submit(queries()[:1])]
        model.close()
    assert "***" in shown[-1]
    assert "is not accepted" in shown[-1]
    assert KEY not in "".join(shown)
    assert KEY not in caplog.text
    assert caplog.records


def test_missing_key_is_named_by_its_variable() -> None:
    """A server that wants a key and gets none: the error names the variable."""
    with server(key=KEY) as found, pytest.raises(RoleError, match="the key in NOBODYS_KEY is not set"):
        client(found.url, api_key_env="NOBODYS_KEY")


def test_key_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break inside a key would be another header: the error says so and does not have the key."""
    monkeypatch.setenv("BROKEN_KEY", f"{KEY}\nX-Other: 1")
    with server() as found, pytest.raises(OptionError, match="BROKEN_KEY has characters") as caught:
        client(found.url, api_key_env="BROKEN_KEY")
    assert KEY not in _chain(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://user:secret-word@127.0.0.1/v1", "http://127.0.0.1/v1?key=secret-word", "http://x@[secret-word/v1"],
)
def test_url_with_a_secret_is_refused_without_being_shown(url: str) -> None:
    """User, password or query in base_url end construction, and the text does not repeat them."""
    with pytest.raises(OptionError, match="api_key_env") as caught:
        RemoteSettings(model="base", base_url=url)
    assert "secret-word" not in _chain(caught.value)


def test_key_in_place_of_its_name_is_refused_without_being_shown() -> None:
    """api_key_env="sk-…" is a slip that must not end up in a log."""
    with pytest.raises(OptionError, match="not the key") as caught:
        RemoteSettings(model="base", base_url="http://127.0.0.1/v1", api_key_env=KEY)
    assert KEY not in _chain(caught.value)


def test_key_over_plain_http_to_another_machine_is_warned_of(key: str) -> None:
    """Once, by name of the host; not for loopback, not for https, not without a key."""
    with pytest.warns(ProxyTuneWarning, match=r"goes to example\.org over plain http") as caught:
        Transport(RemoteSettings(model="base", base_url="http://example.org/v1", api_key_env=key)).close()
    assert len(caught) == 1
    assert KEY not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url, name in (
            ("http://127.0.0.1/v1", key),
            ("http://[::1]:80/v1", key),
            ("http://localhost/v1", key),
            ("https://example.org/v1", key),
            ("http://example.org/v1", "NOBODYS_KEY"),
        ):
            Transport(RemoteSettings(model="base", base_url=url, api_key_env=name)).close()


def test_self_signed_certificate_is_refused_and_a_named_one_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that nobody vouches for is an error at once; with SSL_CERT_FILE it counts."""
    certificate = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    clock = VirtualClock()
    with server(tls=context) as found:
        with pytest.raises(RoleError, match=r"certificate of https://.* is not trusted.*SSL_CERT_FILE"):
            client(found.url, clock=clock)
        assert clock.waits == []
        assert found.recorded == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        model = client(found.url)
        assert answers(model, queries())
        model.close()


def test_redirect_is_not_followed(key: str) -> None:
    """A server that sends the client elsewhere gets no key for there: the error names the other URL."""
    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{http.server_address[1]}/other")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with pytest.raises(RoleError, match=r"sends on to http://127\.0\.0\.1:\d+/other \(307\)"):
            client(f"http://127.0.0.1:{http.server_address[1]}/v1", api_key_env=key)
    finally:
        http.shutdown()
        http.server_close()
    assert seen == ["/v1/models"]


def test_words_of_a_server_are_shortened_and_cleaned() -> None:
    """Control characters, line breaks and all beyond 200 characters of an error's text are gone."""
    transport = Transport(RemoteSettings(model="base", base_url="http://127.0.0.1/v1"))
    assert transport.clean("a\x1b[31m\n\tb\u202e c\x00") == "a [31m b c"
    assert len(transport.clean("x" * 5000)) == 200
    transport.close()


def _chain(error: BaseException | None) -> str:
    """Return all texts of an error and of what led to it."""
    assert error is None or isinstance(error, ProxyTuneError)
    texts = []
    while error is not None:
        texts.append(f"{error!s} {error!r}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _certificate(folder: Path) -> Path:
    """Return a file with a new key and a certificate for 127.0.0.1 that it has signed itself."""
    x509 = pytest.importorskip("cryptography.x509", reason="makes the certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(private, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(private.private_bytes(encoding, form, plain) + certificate.public_bytes(encoding))
    return path
