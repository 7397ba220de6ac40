"""The playground's server and command, without a browser."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import OptionError

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")


def test_only_its_own_name(url: str) -> None:
    """A request under another host's name is refused, as DNS rebinding would send it; every answer names its policy."""
    found = httpx.get(url)
    assert found.status_code == 200
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert httpx.get(url, headers={"Host": "rebound.example"}).status_code == 400


def test_takes_no_files_and_has_no_calls(url: str) -> None:
    """Nothing can be uploaded, and no function is offered to programs."""
    assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"two")}).status_code == 413
    assert httpx.get(f"{url}gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_taken_port(url: str, generator: ProxyGenerator) -> None:
    """A port that is in use, or that is none, is an error that names it."""
    from proxytune.playground import Address, serve
    from proxytune.playground.page import Setting

    port = int(url.rstrip("/").rpartition(":")[2])
    setting = Setting(prompt="", alphas=(1.0,), formats={}, options={"max_new_tokens": 4})
    with (
        pytest.raises(OptionError, match=f"cannot listen on 127.0.0.1:{port}"),
        serve(generator, setting, Address(port=port)),
    ):
        pass
    with pytest.raises(OptionError, match="port is 0"):
        Address(port=0)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a POSIX signal")
def test_command_on_the_bundled_trio(tmp_path: Path) -> None:
    """`proxytune playground` with no option serves the bundled trio on 127.0.0.1, and Ctrl-C ends it with success."""
    command = [sys.executable, "-m", "proxytune", "playground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "playground is at" in line:
                    break
            assert lines, "it said nothing"
            url = next((word for word in lines[-1].split() if word.startswith("http")), "")
            assert url.startswith("http://127.0.0.1:"), lines
            assert httpx.get(url).status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
