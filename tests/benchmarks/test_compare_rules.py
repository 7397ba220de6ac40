"""`bench compare-rules`: a line per method, with figures that a direct call gives."""

import pytest

from benchmarks.cli import main
from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, score
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """Return the cells of each line by its method."""
    assert main(["compare-rules", "--limit", "20", "--rounds", "1", *arguments]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_a_line_per_method(capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy is that of a generator at this α, the base costs what it costs, and a rule of the user's is last."""
    questions = held_out_questions(Recipe().world())[:20]
    trio = [trio_path() / role for role in ("base", "expert", "anti")]
    rows = ProxyGenerator(*trio, alpha=1.5).generate([each.prompt for each in questions], max_new_tokens=MAX_NEW_TOKENS)
    accuracy = score([row.text for row in rows], questions).accuracy
    named = ["--method", "base alone", "--method", "proxy tuning", "--rule", "union,schedule=first:4"]
    lines = lines_of(capsys, *named, "--alpha", "1.5")
    assert list(lines)[1:4] == ["base alone", "proxy tuning", "union,schedule=first:4"]
    rule, alpha, measured, _, time, floor = lines["proxy tuning"]
    assert (rule, alpha, measured[:5]) == ("proxy", "1.5", f"{accuracy:.3f}")
    assert float(time) > 0
    assert (lines["base alone"][1], lines["base alone"][-1]) == ("0", "1.00")
    assert float(floor) > 1


def test_alpha_is_chosen_by_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--alpha` the pair's strength is chosen on other questions: above 0, and better than the base."""
    lines = lines_of(capsys, "--method", "proxy tuning", "--method", "base alone")
    assert float(lines["proxy tuning"][1]) > 0
    assert float(lines["proxy tuning"][3].split()[0]) < float(lines["base alone"][3].split()[0])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["--method", "x"], "--method 'x': it must be one of"), (["--rule", "x"], "rule is 'x'"), (["--limit", "0"], "0")],
)
def test_what_is_wrong_is_named(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything loads."""
    assert main(["compare-rules", *arguments]) == 2
    assert problem in capsys.readouterr().err
