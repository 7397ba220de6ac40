"""`proxytune report`."""

import json
from pathlib import Path

from tests.cli.console import Run, assert_refused


def test_from_trace_to_page(run: Run, tmp_path: Path) -> None:
    """What `trace` writes, `report` makes a page of: in a file, or on standard output the same."""
    traces, page = tmp_path / "trace.jsonl", tmp_path / "report.html"
    options = ["--alphas", "0,1", "--max-new-tokens", 3]
    assert run("trace", "--prompt", "In <b>truth</b>,", *options, "--output", traces).code == 0
    written = run("report", traces, "-o", page)
    assert (written.code, written.out) == (0, "")
    html = page.read_text(encoding="utf-8")
    assert run("report", traces).out == html
    assert html.startswith("<!DOCTYPE html>")
    assert html.count("<article") == 2
    assert "In &lt;b&gt;truth&lt;/b&gt;," in html
    assert "<title>A &amp; B</title>" in run("report", traces, "--title", "A & B").out


def test_refusals(run: Run, tmp_path: Path) -> None:
    """An output that is there stays unless it may be replaced; a missing or other input is named."""
    traces, page = tmp_path / "trace.jsonl", tmp_path / "report.html"
    assert run("trace", "--prompt", "In", "--max-new-tokens", 1, "--output", traces).code == 0
    page.write_text("mine")
    assert_refused(run("report", traces, "-o", page), "report.html", "--overwrite")
    assert page.read_text() == "mine"
    assert_refused(run("report", traces, "-o", tmp_path), "folder")
    assert_refused(run("report", tmp_path / "none.jsonl"), "none.jsonl")
    assert_refused(run("report", page), "line 1")
    assert_refused(run("report", traces, "-o", tmp_path / "no" / "a.html"), "cannot write")
    assert run("report", traces, "-o", page, "--overwrite").code == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "trace.jsonl", "trace.jsonl.run.json"]


def test_models_and_date_are_in_the_page(run: Run, tmp_path: Path) -> None:
    """The page names what made the traces: roles, rule and date."""
    traces = tmp_path / "trace.jsonl"
    assert run("trace", "--prompt", "In", "--max-new-tokens", 1, "--output", traces).code == 0
    page = run("report", traces).out
    assert "trace.jsonl: base base, expert expert, anti anti; rule proxy; 20" in page
    (tmp_path / "trace.jsonl.run.json").unlink()
    assert "rule proxy" not in run("report", traces).out


def test_infinity_and_long_tokens(run: Run, tmp_path: Path) -> None:
    """A number that JSON does not have is refused with its line; a token of a megabyte is cut."""
    traces = tmp_path / "trace.jsonl"
    assert run("trace", "--prompt", "In", "--max-new-tokens", 1, "--output", traces).code == 0
    row = json.loads(traces.read_text())
    for token in row["tokens"]:
        token["text"] = "x" * 1_000_000
        for candidate in token["candidates"]:
            candidate["text"] = "x" * 1_000_000
    traces.write_text(json.dumps(row) + "\n")
    assert "x" * 201 not in run("report", traces).out.replace(row["text"], "").replace(
        "The text: " + "x" * 1_000_000, ""
    )
    traces.write_text(json.dumps(row | {"temperature": float("inf")}) + "\n")
    assert_refused(run("report", traces), "line 1", "Infinity")
