"""The playground on the bundled trio, served to a real browser."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from tests.report.conftest import browser  # noqa: F401 - a fixture

PROMPT = "Where was Jora Quillmere born?"
NUM_TOKENS = 24
_PATIENCE_S = 30
_FORMATS = {f"{role}_prompt": "question" for role in ("base", "expert", "anti")}
# Every state that the two answers and the status pass through, as the page shows them.
_WATCH = """
const value = (id) => document.querySelector(`#${id} textarea, #${id} input`).value;
const seen = [];
window.seen = seen;
clearInterval(window.watch);
window.watch = setInterval(() => {
  const now = JSON.stringify(["base", "steered", "status"].map(value));
  if (seen[seen.length - 1] !== now) seen.push(now);
}, 4);
"""


@pytest.fixture(scope="session")
def generator() -> ProxyGenerator:
    """The bundled trio."""
    return ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")}, **_FORMATS)


@pytest.fixture(scope="session")
def url(generator: ProxyGenerator) -> Iterator[str]:
    """The address of a playground whose answers do not end before they are full."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    pytest.importorskip("gradio")
    from proxytune.playground import Address, serve
    from proxytune.playground.page import Setting

    setting = Setting(
        prompt=PROMPT,
        alphas=(1.0,),
        formats={"base": "question", "expert": "question", "anti": "question"},
        options={"max_new_tokens": NUM_TOKENS, "ignore_eos": True},
    )
    with serve(generator, setting, Address()) as found:
        yield found


@dataclass(frozen=True)
class Playground:
    """The page in the browser."""

    browser: Any
    url: str

    def run(self) -> None:
        """Press Run, and begin to watch."""
        self.browser.execute_script(_WATCH)
        self.browser.find_element("id", "run").click()

    def states(self) -> list[list[str]]:
        """Return base, steered and status in all states since Run, without repetition."""
        return [json.loads(state) for state in self.browser.execute_script("return window.seen")]

    def until(self, status: str) -> list[list[str]]:
        """Return the states up to a status."""
        self.wait(lambda: self.states()[-1:] and self.states()[-1][2].startswith(status), f"status {status!r}")
        return self.states()

    def wait(self, is_so: Callable[[], Any], what: str) -> None:
        """Wait for something on the page, or fail with what it was and the last state."""
        end = time.monotonic() + _PATIENCE_S
        while not is_so():
            if time.monotonic() > end:
                pytest.fail(f"no {what} in {_PATIENCE_S} s: {self.browser.execute_script('return window.seen')}")
            time.sleep(0.05)

    def write(self, name: str, value: str) -> None:
        """Give a field a value, as typing it would."""
        kind = "HTMLInputElement" if name != "prompt" else "HTMLTextAreaElement"
        field = self.browser.find_element("css selector", f"#{name} textarea, #{name} input[type=number]")
        self.browser.execute_script(
            f"Object.getOwnPropertyDescriptor({kind}.prototype, 'value').set.call(arguments[0], arguments[1]);"
            "for (const name of ['input', 'change', 'blur'])"
            "  arguments[0].dispatchEvent(new Event(name, {bubbles: true}));",
            field,
            value,
        )

    def enter_view(self) -> None:
        """Go into the token view's frame."""
        self.wait(lambda: self.browser.find_elements("css selector", "#view iframe"), "token view")
        frame = self.browser.find_element("css selector", "#view iframe")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'start', behavior: 'instant'})", frame)
        self.browser.switch_to.frame(frame)
        self.wait(lambda: self.browser.find_elements("css selector", ".text .token"), "token")

    def assert_quiet(self) -> None:
        """The console has nothing to complain of, and nothing was asked of any other address."""
        assert self.browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert len(asked) > 3
        assert [url for url in asked if not url.startswith((self.url, "data:", "about:"))] == []


@pytest.fixture
def playground(browser: Any, url: str) -> Iterator[Playground]:  # noqa: F811 - the fixture
    """The page, freshly opened, with empty logs; at the end it must be quiet."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(url)
    opened = Playground(browser, url)
    opened.wait(lambda: browser.find_elements("css selector", "#run"), "page")
    yield opened
    browser.switch_to.default_content()
    opened.assert_quiet()
