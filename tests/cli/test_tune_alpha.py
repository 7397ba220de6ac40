"""`proxytune tune-alpha`."""

import json
from pathlib import Path

import pytest

from proxytune import Pair, ProxyGenerator
from tests.cli.console import Run, assert_refused, write_rows

_ROWS = [
    {"prompt": "Once upon", "completion": " a time"},
    {"prompt": "Who", "continuation": " lives there?"},
    {"prompt": [0, 7, 8], "completion": [9, 10]},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Held-out rows of every kind."""
    return write_rows(tmp_path / "held_out.jsonl", _ROWS)


def _table(out: str) -> tuple[dict[float, float], float]:
    """The losses by α, and the α that is marked."""
    lines = [line.split() for line in out.splitlines()[1:]]
    return {float(line[0]): float(line[1]) for line in lines}, next(float(line[0]) for line in lines if line[2:])


def test_the_best_alpha_is_written(run: Run, roles: list[str], rows: Path, tmp_path: Path) -> None:
    """The marked α has the least loss of the table, is in config.json and the card, and the folder steers by it."""
    folder = tmp_path / "proxy"
    run("save", *roles, "--alpha", 0.4, "--expert-prompt", "question", "--output", folder)
    before = json.loads((folder / "config.json").read_text())
    result = run("tune-alpha", "--model", folder, "--prompts", rows, "--alphas", "0.5,1,4")
    losses, best = _table(result.out)
    assert (result.code, losses[best]) == (0, min(losses.values()))
    assert {0.4, 0.5, 1.0, 4.0} < losses.keys()
    after = json.loads((folder / "config.json").read_text())
    before["pairs"][0]["alpha"] = best
    assert after == before
    assert f"α = {best:g}, rule `proxy`" in (folder / "README.md").read_text()
    assert not list(folder.glob(".*"))
    generator = ProxyGenerator.from_pretrained(folder)
    ends = generator.tokenizer.eos_token_id
    texts = [" a time</s>", " lives there?</s>", [9, 10]]
    scores = generator.score([row["prompt"] for row in _ROWS], texts)
    assert [score.token_ids[-1] for score in scores] == [ends, ends, 10]
    nats = -sum(score.total for score in scores) / sum(len(score.logprobs) for score in scores)
    assert losses[best] == pytest.approx(nats, abs=1e-4)


def test_named_roles_get_it_printed(run: Run, roles: list[str], rows: Path) -> None:
    """Without a folder α is in the table and in a note; nothing is refined at --refinements 0."""
    result = run("tune-alpha", *roles, "--prompts", rows, "--alphas", "0,2", "--refinements", 0)
    losses, best = _table(result.out)
    assert set(losses) == {0.0, 1.0, 2.0}
    assert f"the best is alpha {best:g}: pass it with --alpha" in result.err


def test_several_pairs_in_turn(run: Run, trio: Path, rows: Path, tmp_path: Path) -> None:
    """Each pair gets a table, and the second starts from the α of the first."""
    folder = tmp_path / "proxy"
    pairs = [{"expert": str(trio / "expert"), "anti": str(trio / "anti"), "alpha": alpha} for alpha in (1.0, 0.5)]
    ProxyGenerator(base=str(trio / "base"), pairs=[Pair(**pair) for pair in pairs]).save_pretrained(folder)
    result = run("tune-alpha", "--model", folder, "--prompts", rows, "--alphas", "0,1", "--refinements", 1)
    first, second = result.out.split("alpha of pair 2")
    chosen = [_table(text)[1] for text in (first, second)]
    config = json.loads((folder / "config.json").read_text())
    assert [pair["alpha"] for pair in config["pairs"]] == chosen
    assert min(_table(second)[0].values()) <= min(_table(first)[0].values())


@pytest.mark.parametrize(
    ("options", "row", "complaint"),
    [
        (["--batch-size", 0], _ROWS[0], "batch_size is 0"),
        (["--refinements", -1], _ROWS[0], "refinements is -1"),
        (["--alphas", "0,much"], _ROWS[0], "'0,much' is not a list"),
        ([], {**_ROWS[0], "alpha": 1.0}, "a row has an alpha of its own"),
        ([], {"prompt": "Who"}, 'needs a "continuation"'),
    ],
)
def test_refusals(
    run: Run, roles: list[str], tmp_path: Path, options: list[object], row: dict[str, object], complaint: str
) -> None:
    """One sentence, nothing on stdout."""
    rows = write_rows(tmp_path / "rows.jsonl", [row])
    assert_refused(run("tune-alpha", *roles, "--prompts", rows, *options), complaint)
