"""`bench report`: scores as metrics.json has them, gaps by hand, and runs that differ kept apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.reporting.gap import gap_closed, mean_gap
from benchmarks.run import Shard
from benchmarks.tasks.alpacaeval.figures import figures
from tests.benchmarks.conftest import Bench
from tests.benchmarks.made_runs import FLOAT32, make_run

Report = Callable[..., dict[str, Any]]
QUARTERS = {"base": [1, 0, 0, 0], "steered": [1, 1, 0, 0], "tuned": [1, 1, 1, 0]}
ALL = {"base": [0, 0, 0, 0], "steered": [1, 1, 1, 1], "tuned": [1, 1, 1, 1]}
# design/field.md: AlpacaFarm win %, GSM EM %, ToxiGen toxic %, TruthfulQA MC %, TruthfulQA true and informative %
PUBLISHED = {
    "13B": ([2.11, 6.60, 70.36, 38.58, 49.08], [83.35, 26.38, 0.14, 56.62, 82.01], [87.33, 32.45, 0.04, 61.57, 80.42]),
    "70B": ([3.73, 9.63, 67.36, 42.31, 53.86], [87.95, 33.51, 0.00, 59.19, 85.07], [90.37, 51.78, 0.00, 68.26, 79.56]),
}


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Return the function that runs `bench report … --json` and gives what it says."""

    def run(*arguments: object) -> dict[str, Any]:
        code = main(["report", *map(str, arguments), "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        found: dict[str, Any] = json.loads(told.out)
        return found

    return run


def rows_of(found: dict[str, Any], group: int = 0) -> dict[str, dict[str, Any]]:
    """Return a group's rows by name."""
    return {row["name"]: row for row in found["groups"][group]["rows"]}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what a refused report says."""
    assert main(["report", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("size", "published"), [("13B", 0.911), ("70B", 0.881)])
def test_published_gaps(size: str, published: float) -> None:
    """The five published figures of the paper's four tasks give its 91.1 % and 88.1 %, up to their own rounding."""
    found = mean_gap(
        gap_closed(base=base, steered=steered, tuned=tuned)
        for base, steered, tuned in zip(*PUBLISHED[size], strict=True)
    )
    assert found == pytest.approx(published, abs=0.0006)


def test_gaps_of_two_tasks(tmp_path: Path, report: Report) -> None:
    """1/4, 2/4, 3/4 closes half of the gap, 0, 1, 1 all of it, and tasks count alike: 75 %."""
    make_run(tmp_path / "gsm", QUARTERS)
    make_run(tmp_path / "mc", ALL, task="truthfulqa")
    steered = rows_of(report(tmp_path / "gsm", tmp_path / "mc"))["steered"]
    gaps = {score["measure"]: score["gap_closed"] for score in steered["scores"]}
    assert gaps == {"exact match": 0.5, "numeric match": None, "MC1": 1.0, "MC2": None, "MC3": None}
    assert (steered["mean_gap_closed"], steered["num_tasks_of_mean"]) == (0.75, 2)


def test_gap_where_tuning_changes_nothing(tmp_path: Path, report: Report) -> None:
    """A task on which base and tuned are equal has no gap, and does not count in the mean."""
    make_run(tmp_path / "gsm", {"base": [1, 0], "steered": [1, 1], "tuned": [0, 1]})
    make_run(tmp_path / "mc", {"base": [0, 0], "steered": [1, 0], "tuned": [1, 1]}, task="truthfulqa")
    steered = rows_of(report(tmp_path / "gsm", tmp_path / "mc"))["steered"]
    assert (steered["mean_gap_closed"], steered["num_tasks_of_mean"]) == (0.5, 1)


def test_gap_within_chance_is_marked(tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the interval of tuned minus base holds 0 the gap carries a mark and a sentence; elsewhere it does not."""
    make_run(tmp_path / "gsm", QUARTERS)
    make_run(tmp_path / "mc", ALL, task="truthfulqa")
    told = [mark for mark in report(tmp_path / "gsm", tmp_path / "mc")["groups"][0]["marks"] if "beyond chance" in mark]
    assert len(told) == 1
    assert told[0].startswith("gsm8k exact match")
    main(["report", str(tmp_path / "gsm"), str(tmp_path / "mc")])
    assert capsys.readouterr().out.count("~50.0 %") == 1


def test_a_real_run(tmp_path: Path, bench: Bench, readers: dict[str, Path], report: Report) -> None:
    """Values, intervals and counts of a run of models are metrics.json's, to the last digit, and costs are there."""
    compare = f"base,steered,tuned={readers['tuned']}"
    metrics = bench(tmp_path / "run", "--parts", "mc,letter", "--alpha", "0,1", "--compare", compare, "--limit", "3")
    found = report(tmp_path / "run")
    scores = {
        (score["part"], score["measure"], name): score
        for name, row in rows_of(found).items()
        for score in row["scores"]
    }
    assert len(scores) == len(metrics["results"]) == 4 * 4
    for result in metrics["results"]:
        score = scores[result["part"], result["measure"], result["column"]]
        assert all(score[key] == result[key] for key in ("value", "ci95", "n", "num_missing"))
        assert score["seconds"] > 0
        assert score["batch_size"] == 4
    assert [row["alpha"] for row in rows_of(found).values()] == [0.0, 0.0, 1.0, None]


def test_columns_from_runs_of_their_own(tmp_path: Path, report: Report) -> None:
    """Columns that were run apart under one configuration stand in one table, and the gap is closed across them."""
    for name, scores in QUARTERS.items():
        make_run(tmp_path / name, {name: scores})
    found = report(*(tmp_path / name for name in QUARTERS))
    assert len(found["groups"]) == 1
    assert rows_of(found)["steered"]["mean_gap_closed"] == 0.5
    assert [row["scores"][0]["run"] for row in rows_of(found).values()] == [1, 2, 3]


def test_other_batch_sizes_are_kept_apart(tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """The same part at another batch size is a column of its own, marked, and no mean counts the part twice."""
    make_run(tmp_path / "16", QUARTERS)
    make_run(tmp_path / "4", ALL, batch_size=4)
    found = report(tmp_path / "16", tmp_path / "4")
    steered = rows_of(found)["steered"]
    exact = [score for score in steered["scores"] if score["measure"] == "exact match"]
    assert [(score["batch_size"], score["value"]) for score in exact] == [(16, 0.5), (4, 1.0)]
    assert steered["mean_gap_closed"] is None
    marks = found["groups"][0]["marks"]
    assert "Runs differ in batch size (run 1: 16; run 2: 4)." in marks
    assert any(mark.startswith("No mean gap") for mark in marks)


def test_other_limits_are_kept_apart(tmp_path: Path, report: Report) -> None:
    """A column of fewer questions is not put beside those of more: base and tuned of other runs close no gap."""
    make_run(tmp_path / "whole", {"base": [0] * 4, "tuned": [1] * 4})
    make_run(tmp_path / "part", {"steered": [1, 1]}, limit=2)
    found = report(tmp_path / "whole", tmp_path / "part")
    assert rows_of(found)["steered"]["mean_gap_closed"] is None
    assert any(mark.startswith("Runs differ in limit") for mark in found["groups"][0]["marks"])


def test_other_dtypes_are_kept_apart(tmp_path: Path, report: Report) -> None:
    """A base in another dtype is another table."""
    make_run(tmp_path / "float32", QUARTERS)
    make_run(tmp_path / "bfloat16", ALL, base={**FLOAT32, "dtype": "bfloat16"})
    found = report(tmp_path / "float32", tmp_path / "bfloat16")
    assert [group["base"]["dtype"] for group in found["groups"]] == ["float32", "bfloat16"]
    assert [rows_of(found, group)["steered"]["mean_gap_closed"] for group in (0, 1)] == [0.5, 1.0]
    assert rows_of(found, 1)["steered"]["dtype"] == "bfloat16 / float32 / float32"


def test_missing_answers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers without a letter are counted below the table, and the score stands over the others."""
    make_run(tmp_path / "run", {"base": [1, None, 0, None], "steered": [1, 1, 0, 1]}, task="truthfulqa-letter")
    main(["report", str(tmp_path / "run")])
    told = capsys.readouterr().out
    assert "letter accuracy, base: 2 unparsable, left out." in told
    assert "letter accuracy: rows count differently many answers (base 2, steered 4)." in told
    assert "0.500 [" in told
    assert "needs the columns base, steered and tuned" in told


def test_alpacaeval_judged(tmp_path: Path, report: Report) -> None:
    """A judge's win rates are scores with their gap, under the judge's name; lengths close no gap."""
    run = make_run(tmp_path / "run", {name: [0, 0] for name in QUARTERS}, task="alpacaeval")
    assert rows_of(report(run))["steered"]["mean_gap_closed"] is None
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    wins = {"base": 1.0, "steered": 1.5, "tuned": 2.0}
    annotations = {
        name: [
            {"instruction": str(index), "generator_1": "reference", "generator_2": name, "output_1": "", "output_2": ""}
            | {"preference": preference}
            for index in range(2)
        ]
        for name, preference in wins.items()
    }
    fingerprint = json.loads((run / "config.json").read_text(encoding="utf-8"))["fingerprint"]
    judged = run / "judged" / "weighted"
    judged.mkdir(parents=True)
    metrics = {"fingerprint": fingerprint, "judge": {"model": "m"}, "reference": {}, **figures(annotations, rows)}
    (judged / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    steered = rows_of(report(run))["steered"]
    scores = {score["measure"]: (score["value"], score["gap_closed"]) for score in steered["scores"]}
    assert scores["win rate (judge m)"] == (0.5, 0.5)
    assert scores["average length (judge m)"] == (10.0, None)
    assert steered["mean_gap_closed"] == 0.5


def test_incomplete_run(tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused with its count; --partial takes it, marked with its share, and its rows give the score."""
    make_run(tmp_path / "run", QUARTERS, num_chunks=2)
    assert "8 of 12 rows" in refusal(capsys, tmp_path / "run")
    found = report(tmp_path / "run", "--partial")
    assert "Run 1 is incomplete: 8 of 12 rows (66.7%)." in found["groups"][0]["marks"]
    assert rows_of(found)["steered"]["scores"][0]["value"] == 0.5
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One shard of several is no whole run, though all its own rows are there."""
    make_run(tmp_path / "run", QUARTERS, shard=Shard(number=1, total=3))
    assert "4 of 12 rows (shard 1/3)" in refusal(capsys, tmp_path / "run")


def test_figures_of_another_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """metrics.json with another fingerprint is refused, and so is a run without one."""
    metrics = make_run(tmp_path / "run", QUARTERS) / "metrics.json"
    found = json.loads(metrics.read_text(encoding="utf-8"))
    metrics.write_text(json.dumps({**found, "fingerprint": "other"}), encoding="utf-8")
    assert "not of this run's configuration" in refusal(capsys, tmp_path / "run")
    metrics.unlink()
    assert "no metrics.json" in refusal(capsys, tmp_path / "run")


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a run, one named twice, and an impossible number of samples are named."""
    run = make_run(tmp_path / "run", QUARTERS)
    assert "name the folder of a run" in refusal(capsys, tmp_path)
    assert "named twice" in refusal(capsys, run, f"{run}/")
    assert "samples is -1" in refusal(capsys, run, "--samples", "-1")


def test_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line is the gap; tasks are rows of as many cells as there are columns, and names cannot break them."""
    run = make_run(tmp_path / "run", {**QUARTERS, "a|b<i>": [0, 0, 0, 1]})
    main(["report", str(run), "--markdown"])
    told = capsys.readouterr().out
    assert told.startswith("**steered closes 50.0 % of the gap to direct tuning (1 task).**")
    lines = [line for line in told.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}
    assert lines[0].startswith("|  | gap closed | base | ")
    assert " | a\\|b\\<i> | " in lines[0]
    assert lines[2].startswith("| gsm8k exact match \\[1] | ~50.0 % | 0.250 \\[")


def test_the_page_is_written_without_a_browser(tmp_path: Path) -> None:
    """The HTML page holds the run's whole configuration, its fingerprint among it."""
    folder = make_run(tmp_path / "run", {"base": [0, 1], "steered@1": [1, 1]})
    page = tmp_path / "report.html"
    assert main(["report", str(folder), "--output", str(page)]) == 0
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["fingerprint"] in page.read_text(encoding="utf-8")


def test_paired_differences(tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Steered less base is +1/4 and less tuned -1/4 on the same questions, with the intervals of metrics.json."""
    run = make_run(tmp_path / "run", QUARTERS)
    found = {one["title"]: one["figures"][0] for one in report(run)["groups"][0]["differences"]}
    assert {title: one["value"] for title, one in found.items()} == {"steered − base": 0.25, "steered − tuned": -0.25}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    stored = {
        (one["first"], one["second"]): one["ci95"] for one in metrics["comparisons"] if one["measure"] == "exact match"
    }
    assert found["steered − base"]["ci95"] == stored["base", "steered"]
    low, high = stored["steered", "tuned"]
    assert found["steered − tuned"]["ci95"] == [-high, -low]
    main(["report", str(run)])
    assert "+0.250 [" in capsys.readouterr().out


def test_guessing_is_told(tmp_path: Path, bench: Bench, report: Report) -> None:
    """The score of guessing is one of the answers: MC1 is 1 of the best and the false ones, by hand."""
    bench(tmp_path / "run", "--parts", "mc,letter", "--compare", "base", "--limit", "3")
    scores = {score["measure"]: score["random"] for score in rows_of(report(tmp_path / "run"))["base"]["scores"]}
    # The first three questions have 1, 2 and 3 false answers, and two true ones.
    assert scores["MC1"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert scores["MC2"] == pytest.approx((2 / 3 + 2 / 4 + 2 / 5) / 3)
    assert scores["accuracy"] == scores["MC1"]
    assert scores["MC3"] is None


def test_a_run_that_cannot_be_read_is_left_out(
    tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """`report runs/*` names folders without a complete run and reports the others."""
    make_run(tmp_path / "whole", QUARTERS)
    make_run(tmp_path / "part", QUARTERS, num_chunks=1)
    (tmp_path / "empty").mkdir()
    assert main(["report", *(str(tmp_path / name) for name in ("empty", "part", "whole")), "--json"]) == 0
    told = capsys.readouterr()
    assert [Path(run["folder"]).name for run in json.loads(told.out)["runs"]] == ["whole"]
    assert told.err.count("left out:") == 2
    assert "4 of 12 rows" in told.err


def test_the_figure(tmp_path: Path) -> None:
    """`--png` draws the scores, and those against α where several strengths were run."""
    single = make_run(tmp_path / "single", QUARTERS)
    several = make_run(tmp_path / "several", {"base": [0, 1], "steered@0.5": [1, 0], "steered@1": [1, 1]})
    widths = []
    for run in (single, several):
        assert main(["report", str(run), "--png", str(tmp_path / "report.png")]) == 0
        picture = (tmp_path / "report.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        widths.append(int.from_bytes(picture[16:20]))
    assert widths[1] > widths[0]
