"""The report in a real browser."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import ALPHAS, assert_quiet, open_page, write_page

pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
_SCRIPT = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><b>"


def _tokens(browser: Any, column: int) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, f"[data-text='{column}'] .token")


def _assert_card(browser: Any, row: dict[str, Any], place: int) -> None:
    """The card is shown, and says of a token of a row what the JSON Lines say, in figures and to be read."""
    card = browser.find_element(By.ID, "card")
    token = row["tokens"][place]
    assert card.is_displayed()
    values = [entry.get_attribute("data-value") for entry in card.find_elements(By.TAG_NAME, "dd")]
    exact = [token["kl_combined_base"], token["kl_expert_anti"][0], token["cross_entropy"][0], token["base_rank"]]
    assert [float(value) for value in values] == exact
    shown = [entry.text for entry in card.find_elements(By.TAG_NAME, "dd")]
    assert shown == [*(f"{value:.3f}" for value in exact[:3]), str(exact[3])]
    body = card.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(body) == len(token["candidates"])
    assert [cell.text for cell in card.find_elements(By.CSS_SELECTOR, "thead th")][1:] == row["distributions"]
    for line, candidate in zip(body, token["candidates"], strict=True):
        assert line.find_element(By.TAG_NAME, "bdi").get_property("textContent") == candidate["text"]
        assert ("came" in line.text) == (candidate["token_id"] == token["token_id"])
        for cell, name in zip(line.find_elements(By.TAG_NAME, "td"), row["distributions"], strict=True):
            value = candidate[name]
            assert float(cell.get_attribute("data-value")) == value
            assert cell.text == ("< 0.01 %" if 0 < value < 0.00005 else f"{100 * value:.2f} %")
    changed = "Steering changed the choice" in card.text
    assert changed == token["is_changed"]


def test_hover(opened: Any, rows: list[dict[str, Any]], page: Path) -> None:
    """A pointer on a token shows its card with the numbers of the JSON Lines, and leaving it takes the card away."""
    for column, place in ((1, 0), (2, 3), (0, 1)):
        ActionChains(opened).move_to_element(_tokens(opened, column)[place]).perform()
        _assert_card(opened, rows[column], place)
    ActionChains(opened).move_to_element(opened.find_element(By.TAG_NAME, "h1")).perform()
    assert not opened.find_element(By.ID, "card").is_displayed()
    assert_quiet(opened, page)


def test_keyboard(opened: Any, rows: list[dict[str, Any]], page: Path) -> None:
    """One Tab reaches a text, arrows go through it, Enter goes into the card, Escape back and out."""
    opened.execute_script("document.querySelector('.prompt').tabIndex = -1; document.querySelector('.prompt').focus()")

    def press(*keys: str) -> None:
        ActionChains(opened).send_keys(*keys).perform()

    press(Keys.TAB)
    _assert_card(opened, rows[0], 0)
    press(Keys.TAB)
    _assert_card(opened, rows[1], 0)
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    _assert_card(opened, rows[1], 2)
    press(Keys.END)
    _assert_card(opened, rows[1], len(rows[1]["tokens"]) - 1)
    press(Keys.ENTER)
    assert opened.switch_to.active_element.get_attribute("id") == "card"
    press(Keys.ESCAPE)
    assert not opened.find_element(By.ID, "card").is_displayed()
    assert opened.switch_to.active_element == _tokens(opened, 1)[-1]
    assert_quiet(opened, page)


def test_tap_and_chart(opened: Any, rows: list[dict[str, Any]]) -> None:
    """A tap shows a card, and so does a click into the chart, for the token at that place."""
    _tokens(opened, 1)[4].click()
    _assert_card(opened, rows[1], 4)
    chart = opened.find_elements(By.CSS_SELECTOR, "svg.chart")[1]
    places = [float(place) for place in chart.get_attribute("data-places").split()]
    share = places[7] / 600 - 0.5
    ActionChains(opened).move_to_element_with_offset(chart, round(share * chart.size["width"]), 0).click().perform()
    _assert_card(opened, rows[1], 7)
    assert float(chart.find_element(By.CLASS_NAME, "cursor").get_attribute("x1")) == places[7]


def test_said_to_screen_readers(opened: Any, rows: list[dict[str, Any]]) -> None:
    """What assistive technology computes: every token is a button with a name, every section and chart has one too."""
    names = [token.accessible_name for token in _tokens(opened, 1)]
    assert names[0].startswith("“ In”: changed, the base would take “ Everyone”; KL 2.")
    assert len(names) == len(rows[1]["tokens"])
    assert {token.aria_role for token in _tokens(opened, 1)} == {"button"}
    charts = opened.find_elements(By.CSS_SELECTOR, "svg.chart")
    assert all(chart.accessible_name.startswith("KL(combined ‖ base) over") for chart in charts)
    sections = opened.find_elements(By.CSS_SELECTOR, "section, article")
    assert all(section.accessible_name for section in sections)
    assert len(opened.find_elements(By.TAG_NAME, "h1")) == 1


def test_markup_is_text(browser: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """A prompt, a name and a model's text full of HTML and script are shown letter by letter and run nowhere."""
    hostile = copy.deepcopy(rows[:2])
    for row in hostile:
        row |= {"prompt": _SCRIPT, "id": _SCRIPT}
        for token in row["tokens"]:
            token["text"] = _SCRIPT
            for candidate in token["candidates"]:
                candidate["text"] = _SCRIPT
    page = write_page(hostile, tmp_path)
    opened = open_page(browser, page)
    tokens = _tokens(opened, 1)
    assert [token.text for token in tokens] == [_SCRIPT] * len(tokens)
    assert opened.find_element(By.CLASS_NAME, "prompt").text == _SCRIPT
    tokens[0].click()
    assert opened.find_element(By.CSS_SELECTOR, "#card h4").text == _SCRIPT
    assert opened.find_element(By.CSS_SELECTOR, "#card tbody bdi").text == _SCRIPT
    assert opened.execute_script("return window.hacked") is None
    assert opened.find_elements(By.CSS_SELECTOR, "img, b") == []
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 2
    assert_quiet(opened, page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Any, scheme: str) -> None:
    """In light and in dark, text on every colour a token may have keeps the 4.5 : 1 that WCAG AA asks for."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        found = opened.execute_script(
            "const page = getComputedStyle(document.body).backgroundColor;"
            "return [...document.querySelectorAll('.token, .note, .prompt, .plain, h1, td, th')].map((e) => {"
            "  const style = getComputedStyle(e);"
            "  const clear = style.backgroundColor === 'rgba(0, 0, 0, 0)';"
            "  return [style.color, clear ? page : style.backgroundColor]; })"
        )
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    backgrounds = {background for _, background in found}
    assert len(backgrounds) >= 7  # the page, the six colours, the prompt's panel
    assert max(map(_luminance, backgrounds)) > 0.9 if scheme == "light" else min(map(_luminance, backgrounds)) < 0.05
    for ink, background in found:
        high, low = sorted((_luminance(ink), _luminance(background)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, background)


def test_columns_stand_side_by_side(opened: Any) -> None:
    """The texts of one prompt at several α share a line on a wide screen, each under its own heading."""
    articles = opened.find_elements(By.TAG_NAME, "article")
    assert len({article.rect["y"] for article in articles}) == 1
    headings = [article.find_element(By.TAG_NAME, "h3").text for article in articles]
    assert [heading.split(":")[0] for heading in headings] == [f"α = {alpha:g}" for alpha in ALPHAS]


def _luminance(color: str) -> float:
    """Return WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
