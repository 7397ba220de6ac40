"""The page of `bench report` in a real browser: its figures, and that nothing in it runs or leaves the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from tests.benchmarks.made_runs import make_run

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
HOSTILE = (
    '</pre><script>document.title="owned"</script><img src="http://192.0.2.1/x.png" onerror="document.title=1">'
    "<style>@import url(http://192.0.2.1/x.css)</style>{{ 7 * 7 }} &amp; \"quoted\" 'too' \u202eturned\x00"
)
HOSTILE_NAME = '"><script>document.title="owned"</script>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own, which logs its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs: answers that are markup, and scores with categories at two strengths."""
    root = tmp_path_factory.mktemp("runs")
    hostile = {"base": [0, None, 0], HOSTILE_NAME: [1, 1, 0], "steered@0.5": [1, 0, 0], "steered@1": [1, 0, 1]}
    scores = {"base": [0.1, 0.2, 1 / 3], "steered@0.5": [0.4, 0.5, 0.6], "steered@1": [0.7, 0.8, 0.9]}
    return [
        make_run(root / "gsm", hostile, texts=dict.fromkeys(hostile, HOSTILE)),
        make_run(root / "mc", scores, task="truthfulqa"),
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path], browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of both, written and open in the browser."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", *map(str, runs), "--output", str(path)]) == 0
    browser.get(path.as_uri())
    return path


def test_figures(runs: list[Path], page: Path, browser: Any) -> None:
    """Every score in the page is metrics.json's to the last digit, and shown rounded to three places."""
    cells = browser.execute_script(
        "return [...document.querySelectorAll('td[data-value]')].map(cell => [{...cell.dataset}, cell.innerText]);"
    )
    found = {(int(data["run"]), data["part"], data["measure"], data["column"]): (data, text) for data, text in cells}
    num_results = 0
    for run, folder in enumerate(runs, 1):
        for result in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["results"]:
            data, text = found[run, result["part"], result["measure"], result["column"]]
            assert json.loads(data["value"]) == result["value"]
            assert [json.loads(data["low"]), json.loads(data["high"])] == result["ci95"]
            assert text.startswith(f"{result['value']:.3f}")
            assert f"n = {result['n']}" in text
            num_results += 1
    assert num_results == len(cells) == 4 * 2 + 3 * 3


def test_the_answer_comes_first(page: Path, browser: Any) -> None:
    """Base 0 of 2, steered 1/3 and 2/3, tuned 2/3: half of the gap and all of it, before anything else."""
    first = browser.execute_script("return document.querySelector('h1 + p').textContent;")
    assert first.startswith("steered@0.5 closes 50.0 % of the gap to direct tuning (1 task); steered@1 closes 100.0 %")
    gaps = browser.execute_script(
        "return [...document.querySelectorAll('[data-gap]')].map(cell => [cell.dataset.gap, cell.textContent]);"
    )
    assert [json.loads(value) for value, _ in gaps] == [0.5, 1.0]
    assert gaps[0][1].endswith("50.0 %")
    heading = browser.execute_script("return document.querySelector('.scores thead th + th').textContent;")
    assert heading.startswith("gap closed")


def test_a_phone(page: Path, browser: Any) -> None:
    """At 390 by 844 pixels nothing is wider than the screen, and every score has the name of its system beside it."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth;") <= 390
        labels = browser.execute_script(
            "return [...document.querySelectorAll('.scores td[data-value]')]"
            ".map(cell => getComputedStyle(cell, '::before').content);"
        )
        assert all(label not in ("none", '""') for label in labels)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_text_stays_text(page: Path, browser: Any) -> None:
    """Markup in answers, in questions and in names is shown as it is written, and makes no element."""
    counts = browser.execute_script(
        "return ['script', 'img[src^=http]', 'iframe', 'link[rel=stylesheet]']"
        ".map(name => document.querySelectorAll(name).length);"
    )
    assert counts == [0, 0, 0, 0]
    assert browser.title == "Benchmark report"
    texts = browser.execute_script(
        "return [...document.querySelectorAll('.sample .answers pre')].map(pre => pre.textContent);"
    )
    # HTML has no NUL: the parser shows the replacement character or drops it, and the rest is to the letter.
    assert any(text.rstrip("\ufffd\x00") == HOSTILE.rstrip("\x00") for text in texts)
    names = browser.execute_script("return [...document.querySelectorAll('th[scope=col]')].map(th => th.textContent);")
    assert any(name.startswith(HOSTILE_NAME) for name in names)


def test_the_figure(page: Path, browser: Any) -> None:
    """The figure is shown, and said in words for whoever cannot see it."""
    shown = browser.execute_script(
        "const image = document.querySelector('main img'); return [image.naturalWidth, image.alt];"
    )
    assert shown[0] > 500
    assert "steered@1 0.800" in shown[1]


def test_keyboard(page: Path, browser: Any) -> None:
    """Tab goes to a sample, and Enter opens it."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(100):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        if browser.execute_script("return arguments[0].matches('.sample > summary');", element):
            break
    assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle;", element) == "solid"
    element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('.sample').open;") is True
    element.send_keys(Keys.TAB)
    assert browser.execute_script("return document.activeElement !== arguments[0];", element)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Path, browser: Any, scheme: str) -> None:
    """Text and background have a contrast of at least 4.5, the dim text too, in light and in dark."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    colours = browser.execute_script(
        "const of = (name, property) => getComputedStyle(document.querySelector(name))[property];"
        "return [of('body', 'backgroundColor'), of('body', 'color'), of('.counts', 'color'), of('.note', 'color'),"
        " of('.marks', 'backgroundColor')];"
    )
    page_colour, *texts, marks = [_luminance(colour) for colour in colours]
    assert (page_colour > 0.5) == (scheme == "light")
    assert all(_contrast(page_colour, text) >= 4.5 for text in texts)
    assert _contrast(marks, texts[0]) >= 4.5


def test_quiet_and_alone(page: Path, browser: Any, tmp_path: Path) -> None:
    """The console stays empty, and the only request is for the page itself; a page that asks for more is seen to."""
    assert browser.get_log("browser") == []
    sent = _requests(browser, page)
    assert page.as_uri() in sent
    assert [url for url in sent if not url.startswith(("data:", page.as_uri()))] == []
    other = tmp_path / "other.html"
    other.write_text('<img src="http://127.0.0.1:1/x.png">', encoding="utf-8")
    browser.get(other.as_uri())
    assert "http://127.0.0.1:1/x.png" in _requests(browser, other)
    browser.get(page.as_uri())


def _requests(browser: Any, page: Path) -> list[str]:
    """Return the addresses that a page asked for; the browser's own start page asks for others."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if one["documentURL"].partition("#")[0] == page.as_uri()]


def _luminance(colour: str) -> float:
    """Return WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(first: float, second: float) -> float:
    low, high = sorted((first, second))
    return (high + 0.05) / (low + 0.05)
