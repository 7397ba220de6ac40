"""The report's numbers and its page, without a browser."""

import base64
import gzip
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxytune.errors import InputError
from proxytune.report import TracedText, read_traced_texts, render
from proxytune.report.chart import HEIGHT, draw, highest
from proxytune.report.summary import summarise
from proxytune.trace import Candidate, TokenTrace, Trace
from tests.report.conftest import PROMPT


def _token(token_id: int, base: float, combined: float, **settings: Any) -> TokenTrace:
    return TokenTrace(
        **{
            "token_id": token_id,
            "text": f"t{token_id} ",
            "is_changed": False,
            "base_rank": 1,
            "kl_combined_base": 0.5,
            "kl_expert_anti": (0.25,),
            "cross_entropy": (1.0,),
            "candidates": (
                Candidate(token_id=token_id, text=f"t{token_id} ", probabilities=(base, 0.5, 0.5, combined)),
            ),
            **settings,
        }
    )


def _text(*tokens: TokenTrace, alpha: float = 1.0, **settings: Any) -> TracedText:
    trace = Trace(
        alphas=(alpha,),
        distributions=("base", "expert", "anti", "combined"),
        pairs=(("expert", "anti"),),
        tokens=tokens,
    )
    return TracedText(**{"prompt": "p", "trace": trace, **settings})


def test_summary_by_hand() -> None:
    """Share of changes, means, and tokens by mean shift with their commonest context, one summary per strength."""
    first = _text(
        _token(1, 0.25, 0.5), _token(2, 0.5, 0.25), _token(1, 0.25, 1.0, is_changed=True, kl_combined_base=2.0)
    )
    second = _text(_token(1, 0.5, 0.5), _token(3, 0.0, 0.25), alpha=1.0)
    other = _text(_token(4, 0.0, 1.0), alpha=0.5)
    [one, two] = summarise([first, second, other])
    assert (one.strength, one.num_texts, one.num_tokens, two.strength) == ("1", 2, 5, "0.5")
    assert one.changed_share == pytest.approx(1 / 5)
    assert one.kl_combined_base == pytest.approx((0.5 * 4 + 2.0) / 5)
    assert (one.kl_expert_anti, one.cross_entropy) == ((0.25,), (1.0,))
    assert one.shift == pytest.approx((0.25 - 0.25 + 0.75 + 0.0 + 0.25) / 5)
    assert [(token.text, token.count) for token in one.moved] == [("t1 ", 3), ("t3 ", 1)]
    assert [token.shift for token in one.moved] == pytest.approx([1 / 3, 0.25])
    assert one.moved[1].context == "t1 t3 "


def test_rare_tokens_are_left_out() -> None:
    """In many tokens, one that came less often than a hundredth of them, or 100 times, is not among the most moved."""
    rare = [_token(9, 0.0, 1.0)] * 3
    [summary] = summarise([_text(*rare, *[_token(1, 0.25, 0.5)] * 400)])
    assert (summary.min_count, [token.text for token in summary.moved]) == (4, ["t1 "])


def test_commonest_context() -> None:
    """The context is the run of four tokens that most often ends with the token."""
    common = [_token(1, 0.5, 0.5), _token(2, 0.5, 0.5), _token(3, 0.5, 0.5), _token(9, 0.1, 0.9)]
    [summary] = summarise([_text(*common, *common, _token(9, 0.1, 0.9))])
    assert summary.moved[0].context == "t1 t2 t3 t9 "


def test_chart_scale() -> None:
    """The top of the picture is a round number above every divergence; infinity is drawn there, zero at the foot."""
    text = _text(
        _token(1, 0.5, 0.5, kl_combined_base=0.0),
        _token(2, 0.5, 0.5, kl_combined_base=2.1),
        _token(3, 0.5, 0.5, kl_combined_base=math.inf),
    )
    assert highest([text.trace]) == 2.5
    chart = draw(text.trace, 2.5)
    heights = [float(point.split()[1]) for point in chart.series[0].path[1:].split(" L")]
    assert heights[0] == chart.ticks[0][0] > heights[1] > heights[2] == chart.ticks[2][0]
    assert [label for _, label in chart.ticks] == ["0", "1.25", "2.5"]
    assert all(0 <= height <= HEIGHT for height in heights)
    assert list(chart.places) == sorted(chart.places)


def test_empty_text() -> None:
    """A text of no tokens, and divergences that are all zero, make a page too."""
    page = render([_text(), _text(_token(1, 1.0, 1.0, kl_combined_base=0.0, kl_expert_anti=(0.0,)))])
    assert "The text is empty." in page
    assert "0.0 % of 0 choices changed" in page


def test_page_holds_its_own_hashes(page: Path) -> None:
    """The one style and the one script that may run are those on the page; nothing is loaded from anywhere."""
    html = page.read_text(encoding="utf-8")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'; ")
    for directive, element in (("style-src", "style"), ("script-src", "script")):
        [content] = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|//\w|@import|url\(", html)
    assert not re.search(r"\son\w+=|\sstyle=", html)


def test_two_pairs_and_messages(rows: list[dict[str, Any]]) -> None:
    """Chat prompts are shown with their roles, and two pairs with a line and a number each."""
    trace = Trace(
        alphas=(1.0, -0.5),
        distributions=("base", "expert_1", "anti_1", "expert_2", "anti_2", "combined"),
        pairs=(("expert_1", "anti_1"), ("expert_2", "anti_2")),
        tokens=(
            _token(
                1,
                0.5,
                0.5,
                kl_expert_anti=(0.25, 0.75),
                cross_entropy=(1.0, 2.0),
                candidates=(Candidate(token_id=1, text="t1", probabilities=(0.5, 0.1, 0.2, 0.3, 0.4, 0.6)),),
            ),
        ),
    )
    page = render([TracedText(prompt=[{"role": "user", "content": "Who?"}], trace=trace, name="q1", seed=4)])
    assert "user: Who?" in page
    assert "α = 1, -0.5, seed 4" in page
    assert "KL(expert_2 ‖ anti_2)" in page
    assert "0.250 / 0.750" in page
    assert [series.style for series in draw(trace, 1.0).series] == [0, 1, 2]


def test_prompts_are_grouped() -> None:
    """Texts of one prompt and name stand together, wherever in the file they are; others apart."""
    texts = [_text(name=name, prompt=prompt) for name, prompt in (("a", "p"), ("b", "p"), ("a", "p"), ("a", "q"))]
    page = render(texts)
    assert re.findall(r'<article aria-labelledby="text(\d)', page) == ["0", "2", "1", "3"]
    assert len(re.findall(r'<pre class="prompt"', page)) == 3


def test_reading(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Plain and gzipped files give the same texts; half a surrogate pair in one does not stop the page."""
    data = "".join(json.dumps(row | {"id": 7, "prompt": "\ud800 in"}) + "\n\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(data, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data.encode()))
    plain, packed = (read_traced_texts(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz"))
    assert plain == packed
    assert [(text.name, text.strength) for text in plain] == [("7", "0"), ("7", "1"), ("7", "2")]
    assert "\ufffd in" in render(plain).encode().decode()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "holds no trace"),
        (b"{}\n", "line 1 of"),
        (b'\n{"prompt": "a", "text": "b"}\n', "line 2 of .* is missing"),
        (b"[1]\n", "no object with a prompt"),
        (b"{", "line 1"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_bad_files(data: bytes, told: str, tmp_path: Path) -> None:
    """A file that holds something else is refused, with the line and the reason."""
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=told):
        read_traced_texts(tmp_path / "a.jsonl")


def test_infinite_divergence(rows: list[dict[str, Any]]) -> None:
    """An infinite KL is shown as ∞, in the summary and to screen readers."""
    trace = Trace.from_row(rows[1])
    tokens = (replace(trace.tokens[0], kl_combined_base=math.inf), *trace.tokens[1:])
    page = render([TracedText(prompt=PROMPT, trace=replace(trace, tokens=tokens))])
    assert "KL ∞" in page
    assert "<td>∞</td>" in page
