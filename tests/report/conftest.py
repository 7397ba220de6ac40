"""A real trace in a file, its page, and a real browser that says what it did."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.report import read_traced_texts, render

PROMPT = "Question: Where was Jora Quillmere born?\nAnswer:"
ALPHAS = (0.0, 1.0, 2.0)
_CHROMIUM, _DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Rows of `proxytune trace`: a question of the demo world on the bundled trio at three strengths."""
    generator = ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")})
    return [
        {"index": index, "prompt": PROMPT, "alpha": alpha, "text": trace.text, **trace.row()}
        for index, alpha in enumerate(ALPHAS)
        for trace in [generator.trace(PROMPT, alpha=alpha, max_new_tokens=32)]
    ]


def write_page(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write rows as JSON Lines and the page that the report makes of that file; return the page."""
    traces = folder / "trace.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(read_traced_texts(traces)), encoding="utf-8")
    return page


@pytest.fixture(scope="session")
def page(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of these rows."""
    return write_page(rows, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, in a profile of its own, logging its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not _CHROMIUM.is_file() or not _DRIVER.is_file():
        pytest.skip(f"no browser: {_CHROMIUM} and {_DRIVER} are needed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(_CHROMIUM)
    for switch in (*_SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(_DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page open, and nothing that came before in its logs."""
    return open_page(browser, page)


def open_page(browser: Any, page: Path) -> Any:
    """Open a page with empty logs."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def assert_quiet(browser: Any, page: Path) -> None:
    """The console has nothing to complain of, and nothing but the page itself was asked for."""
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
