"""One folder per run: gone on with after any end, refused for another configuration, divided and put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.files import differences
from benchmarks.run import Chunk, Predictions, Shard, chunks_of
from proxytune.errors import OptionError, OutputError
from tests.benchmarks.conftest import Bench, command, predictions, results

CHUNKS = [Chunk(column="base", part="mc", indices=(0, 1)), Chunk(column="base", part="mc", indices=(2,))]


def row(index: int) -> dict[str, object]:
    """Return a row of the plan."""
    return {"column": "base", "part": "mc", "index": index, "text": "ä\n"}


def test_a_file_cut_at_any_byte_is_repaired(tmp_path: Path) -> None:
    """Whatever a kill leaves of the file, whole chunks are kept, the rest is cut, and going on gives the same file."""
    path = tmp_path / "predictions.jsonl"
    with Predictions(path, CHUNKS) as file:
        file.append([row(0), row(1)])
        middle = path.stat().st_size
        file.append([row(2)])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Predictions(path, CHUNKS) as file:
            assert file.num_done == (size >= middle) + (size == len(whole))
            for chunk in CHUNKS[file.num_done :]:
                file.append([row(index) for index in chunk.indices])
        assert path.read_bytes() == whole


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    """A row that is not the plan's is an error that names its line, and stays as it is."""
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(row(0)) + "\n" + json.dumps(row(5)) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="line 2"):
        Predictions(path, CHUNKS)
    assert path.read_bytes() == before


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    """The second to open the predictions is refused while the first holds them."""
    path = tmp_path / "predictions.jsonl"
    with Predictions(path, CHUNKS), pytest.raises(OutputError, match="another process"):
        Predictions(path, CHUNKS)
    Predictions(path, CHUNKS).close()


def test_shards_make_up_the_plan() -> None:
    """Every chunk is in exactly one shard, and each shard keeps the plan's order."""
    sizes = {"mc": 5, "open": 3}
    whole = chunks_of(["base", "steered"], sizes, 2)
    shards = [chunks_of(["base", "steered"], sizes, 2, Shard(number=number, total=3)) for number in (1, 2, 3)]
    assert sorted((chunk for shard in shards for chunk in shard), key=whole.index) == whole
    assert sum(len(shard) for shard in shards) == len(whole) == 2 * (3 + 2)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_shards_are_checked(text: str) -> None:
    """A shard that is not i/n with 1 ≤ i ≤ n is refused."""
    with pytest.raises(OptionError, match="i/n"):
        Shard.parse(text)


def test_another_configuration_is_refused_by_name(
    bench: Bench, readers: dict[str, Path], questions_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder takes only its own run: the refusal names what differs, and nothing in the folder changes."""
    bench(tmp_path / "run", "--compare", "base", "--parts", "mc")
    before = predictions(tmp_path / "run")
    arguments = [*command(readers, questions_csv, tmp_path / "run"), "--compare", "base", "--parts", "mc"]
    assert main([*arguments, "--limit", "3", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "sizes.mc is 7 there and 3 here" in told
    assert "settings.limit is null there and 3 here" in told
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert predictions(tmp_path / "run") == before


def test_other_weights_are_refused(bench: Bench, readers: dict[str, Path], tmp_path: Path) -> None:
    """The fingerprint knows the weights, not only where they lie."""
    config = {}
    for name in ("base", "tuned"):
        bench(tmp_path / name, "--compare", f"other={readers[name]}", "--parts", "letter", "--limit", "2")
        config[name] = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
    assert config["base"]["fingerprint"] != config["tuned"]["fingerprint"]
    changed = differences(config["base"]["settings"]["models"], config["tuned"]["settings"]["models"])
    assert any("sha256" in text for text in changed)


def test_going_on_ends_with_the_same_file(bench: Bench, tmp_path: Path) -> None:
    """A run whose file was cut and is gone on with equals one that was not, byte for byte; so do its figures."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--compare", "base,steered", "--parts", "mc,letter")
    expected = bench(whole, *options)
    bench(cut, *options)
    data = predictions(whole)
    for share in (0.0, 0.31, 0.74):
        (cut / "predictions.jsonl").write_bytes(data[: int(len(data) * share)])
        (cut / "metrics.json").unlink()
        assert bench(cut, *options, "--resume") == expected
        assert predictions(cut) == data
    sessions = json.loads((cut / "config.json").read_text(encoding="utf-8"))["sessions"]
    assert len(sessions) == 4
    assert {"versions", "git_sha", "device", "started"} <= set(sessions[0])


def test_merged_shards_equal_the_undivided_run(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards merge into the undivided run's bytes and figures; missing, doubled and unfinished ones are refused."""
    options = ("--compare", "base,steered", "--parts", "mc,letter")
    expected = bench(tmp_path / "whole", *options)
    shards = [tmp_path / f"shard{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(shards, 1):
        bench(folder, *options, "--shard", f"{number}/3")
    names = [str(folder) for folder in shards]
    assert main(["merge", str(tmp_path / "merged"), *reversed(names)]) == 0
    assert predictions(tmp_path / "merged") == predictions(tmp_path / "whole")
    merged = json.loads((tmp_path / "merged" / "metrics.json").read_text(encoding="utf-8"))
    assert merged == expected
    capsys.readouterr()
    for given, reason in ((names[:2], "3/3 is missing"), ([*names, names[0]], "named twice")):
        assert main(["merge", str(tmp_path / "other"), *given]) == 2
        assert reason in capsys.readouterr().err
    (shards[1] / "predictions.jsonl").write_bytes(predictions(shards[1])[:-20])
    assert main(["merge", str(tmp_path / "other"), *names]) == 2
    assert "--resume" in capsys.readouterr().err


def test_shards_of_different_runs_do_not_merge(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard made with another option is refused, and the option is named."""
    bench(tmp_path / "one", "--shard", "1/2", "--parts", "mc", "--compare", "base")
    bench(tmp_path / "two", "--shard", "2/2", "--parts", "mc", "--compare", "base", "--seed", "5")
    assert main(["merge", str(tmp_path / "merged"), str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    assert "settings.seed" in capsys.readouterr().err


def test_figures_know_their_columns(bench: Bench, tmp_path: Path) -> None:
    """Every part, measure and column has a result over all questions, and every pair of columns a comparison."""
    metrics = bench(tmp_path / "run", "--alpha", "0.5,1")
    found = results(metrics)
    assert {column for _, _, column in found} == {"base", "expert", "steered@0.5", "steered@1"}
    assert {(part, measure) for part, measure, _ in found} >= {("mc", "MC1"), ("mc", "MC3"), ("letter", "accuracy")}
    assert all(result["n"] + result["num_missing"] == 7 for result in found.values())
    assert len([pair for pair in metrics["comparisons"] if pair["measure"] == "MC2"]) == 6


def test_a_refused_run_leaves_no_folder(
    readers: dict[str, Path], questions_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt that no role can read ends the run before its first row, and nothing of it stays; other files do."""
    given = command(readers, questions_csv, tmp_path / "runs" / "one")
    long = ["--parts", "open", "--compare", "base", "--base-prompt", "x" * 2000 + "{prompt}"]
    assert main([*given, *long]) == 2
    assert "tokens" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "notes.txt").write_text("mine", encoding="utf-8")
    assert main([*given, *long]) == 2
    assert [path.name for path in (tmp_path / "runs" / "one").iterdir()] == ["notes.txt"]
