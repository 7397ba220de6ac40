"""The playground in a real browser."""

import threading
from itertools import pairwise
from typing import Any

import pytest

from proxytune import ProxyGenerator
from tests.playground.conftest import NUM_TOKENS, PROMPT, Playground

pytest.importorskip("selenium")
pytest.importorskip("gradio")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
_LONG = "900"
_HOSTILE = "</textarea></iframe><img src=x onerror='top.hacked=1'><script>top.hacked=1</script>${hacked=1}{{value}}<b>"


def _slide(playground: Playground, presses: int) -> float:
    """Move the slider with the arrow keys; return where it stands."""
    slider = playground.browser.find_element(By.CSS_SELECTOR, "#alpha0 input[type=range]")
    slider.send_keys(*[Keys.ARROW_RIGHT] * presses)
    return float(slider.get_property("value"))


def _assert_grew(texts: list[str]) -> None:
    """A text was seen in several states on its way, each the beginning of the next."""
    distinct = list(dict.fromkeys(texts))
    assert len(distinct) >= 4
    assert all(later.startswith(earlier) for earlier, later in pairwise(distinct))


def _assert_card(browser: Any, row: dict[str, Any], place: int) -> None:
    """The card that is shown has the numbers of a token of a trace's row."""
    card, token = browser.find_element(By.ID, "card"), row["tokens"][place]
    assert card.is_displayed()
    values = [float(entry.get_attribute("data-value")) for entry in card.find_elements(By.TAG_NAME, "dd")]
    assert values == [
        token["kl_combined_base"],
        token["kl_expert_anti"][0],
        token["cross_entropy"][0],
        token["base_rank"],
    ]
    cells = [float(cell.get_attribute("data-value")) for cell in card.find_elements(By.CSS_SELECTOR, "tbody td")]
    assert cells == [candidate[name] for candidate in token["candidates"] for name in row["distributions"]]


def test_streams_and_token_view(playground: Playground, generator: ProxyGenerator) -> None:
    """With the slider moved, both texts stream at once to what `trace` gives, and a token's card has its numbers."""
    alpha = _slide(playground, 10)
    assert alpha == 1.5
    playground.run()
    states = playground.until("Done.")
    options = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    traces = [generator.trace(PROMPT, alpha=strength, **options) for strength in (0.0, alpha)]
    assert states[-1][:2] == [trace.text for trace in traces]
    assert traces[0].text != traces[1].text
    for side in (0, 1):
        _assert_grew([state[side] for state in states if state[2] == "Answering …"])
    ends = states[-1]
    assert any(base and steered and base != ends[0] and steered != ends[1] for base, steered, _ in states)
    playground.enter_view()
    for column, place in ((0, 1), (1, 3)):
        token = playground.browser.find_elements(By.CSS_SELECTOR, f"[data-text='{column}'] .token")[place]
        playground.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
        ActionChains(playground.browser).move_to_element(token).perform()
        _assert_card(playground.browser, traces[column].row(), place)


def test_markup_is_text(playground: Playground) -> None:
    """A prompt full of HTML, script and template marks is shown letter by letter, in the view too, and runs nowhere."""
    playground.write("prompt", _HOSTILE)
    playground.run()
    playground.until("Done.")
    browser = playground.browser
    playground.enter_view()
    assert browser.find_element(By.CLASS_NAME, "prompt").text == _HOSTILE
    assert browser.find_elements(By.CSS_SELECTOR, "img, b") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    assert browser.execute_script("return [window.hacked, window.origin]") == [None, "null"]
    browser.switch_to.default_content()
    assert browser.find_elements(By.CSS_SELECTOR, "#view img, #view b") == []
    assert browser.execute_script("return window.hacked") is None


def test_stop_and_errors(playground: Playground) -> None:
    """Stop ends both answers where they are and the view is of that; an empty prompt is an error in one sentence."""
    playground.write("tokens", _LONG)
    playground.run()
    playground.wait(lambda: any(state[0] and state[1] for state in playground.states()), "text")
    playground.browser.find_element(By.ID, "stop").click()
    base, steered, _ = playground.until("Stopped.")[-1]
    assert base
    assert steered
    playground.enter_view()
    shown = playground.browser.find_elements(By.CSS_SELECTOR, "article > p.hidden")
    assert [text.get_property("textContent") for text in shown] == [f"The text: {text}" for text in (base, steered)]
    assert max(len(text.find_elements(By.XPATH, "../div/span")) for text in shown) < int(_LONG)
    playground.browser.switch_to.default_content()
    playground.write("prompt", "")
    playground.run()
    playground.until("the prompt is empty: pass at least one character.")
    assert playground.browser.find_elements(By.CSS_SELECTOR, "#view iframe") == []


def test_closed_page_ends_its_work(playground: Playground) -> None:
    """A page that is left in the middle of an answer does not keep the model busy: the next one is answered."""
    playground.write("tokens", _LONG)
    playground.run()
    playground.wait(lambda: any(state[0] and state[1] for state in playground.states()), "text")
    assert _num_streams() == 2
    playground.browser.get(playground.url)
    playground.wait(lambda: _num_streams() == 0, "end of the work")
    playground.wait(lambda: playground.browser.find_elements(By.ID, "run"), "page")
    playground.browser.get_log("browser")  # gradio's page complains that it was left
    playground.run()
    assert playground.until("Done.")[-1][0].startswith(" Everyone knows")


def _num_streams() -> int:
    """Return how many answers are being decoded."""
    return sum(thread.name == "proxytune-stream" for thread in threading.enumerate())


def test_one_question_at_a_time(playground: Playground) -> None:
    """A second page's question waits for the first one's answers, and Stop on the second does not end the first."""
    browser = playground.browser
    playground.write("tokens", _LONG)
    playground.run()
    playground.wait(lambda: any(state[0] and state[1] for state in playground.states()), "text")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        browser.get(playground.url)
        playground.wait(lambda: browser.find_elements(By.ID, "run"), "page")
        playground.run()
        browser.find_element(By.ID, "stop").click()
        playground.wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#status .progress-text"), "place in the queue")
        second = browser.current_window_handle
        browser.switch_to.window(first)
        num_seen = len(playground.states())
        playground.wait(lambda: len(playground.states()) > num_seen + 8, "more text")
        assert playground.states()[-1][2] == "Answering …"
        assert _num_streams() == 2
        browser.find_element(By.ID, "stop").click()
        playground.until("Stopped.")
        browser.switch_to.window(second)
        assert playground.until("Done.")[-1][0].startswith(" Everyone knows")
    finally:
        for handle in set(browser.window_handles) - {first}:
            browser.switch_to.window(handle)
            browser.close()
        browser.switch_to.window(first)
