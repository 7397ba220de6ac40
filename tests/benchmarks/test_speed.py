"""`python -m benchmarks.speed` on tiny shapes: all variants, equal tokens, and the rows it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.decoding.equality import TokensDifferError
from benchmarks.decoding.floor import TrioBytes
from benchmarks.decoding.measuring import Setting, measure, new_row
from benchmarks.decoding.naive import Decoded, naive_batches
from benchmarks.decoding.rows import RowsError, read_rows, table
from benchmarks.decoding.shapes import SHAPES
from benchmarks.decoding.trios import Trio, shape_trio
from benchmarks.decoding.variants import NAMES, Variant
from benchmarks.decoding.workloads import Requests, parse_workload

TINY = "llama-2m,llama-2m,llama-2m"
REQUIRED = {
    "variant",
    "batch",
    "prompt_tokens",
    "new_tokens",
    "tokens_per_s",
    "ratio_to_base",
    "floor_ratio",
    "acceptance",
    "hardware",
    "versions",
}


@pytest.fixture(scope="module")
def trio() -> Trio:
    """A base and a pair of two million parameters each."""
    shape = SHAPES["llama-2m"]
    return shape_trio((shape, shape, shape), dtype=torch.float32, device=torch.device("cpu"), rank=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows and the picture of one run of all variants."""
    folder = tmp_path_factory.mktemp("speed")
    files = ["--json", str(folder / "rows.json"), "--png", str(folder / "rows.png")]
    options = ["--shape", TINY, "--workloads", "5:6@1", "6:8@3", "--rounds", "2", "--rank", "4"]
    assert speed.main([*options, "--speculation", "2", *files]) == 0
    return folder


def test_rows_of_every_variant(measured: Path) -> None:
    """Each workload has a row per variant, in order, with what was measured, on what, and that all tokens are equal."""
    rows = json.loads((measured / "rows.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in rows] == [*NAMES, *NAMES]
    for row in rows:
        assert set(row) >= REQUIRED
        assert row["tokens_per_s"] > 0
        assert row["equal_rows"] == f"{row['batch']}/{row['batch']}"
        assert row["hardware"]
        assert row["versions"]["torch"] == torch.__version__
        assert len(row["seconds_of_rounds"]) == 2
    assert rows[0]["ratio_to_base"] == 1.0
    assert (measured / "rows.png").stat().st_size > 1000


def test_floors_of_the_rows(measured: Path) -> None:
    """The trio's floor is 3 for three models of one size, the pair's near 2; drafts are counted where made."""
    rows = {row.variant: row for row in read_rows(measured / "rows.json") if row.batch == 3}
    assert rows["base"].floor_ratio == rows["base_ours"].floor_ratio == 1.0
    assert rows["naive"].floor_ratio == rows["plain"].floor_ratio == pytest.approx(3.0)
    assert 2.0 < (rows["pair"].floor_ratio or 0.0) < 2.2
    drafted = rows["speculative"]
    assert drafted.num_drafted is not None
    assert drafted.tokens_per_cycle is not None
    assert drafted.floor_ratio == pytest.approx((drafted.num_drafted + 1 + 2) / drafted.tokens_per_cycle, rel=1e-4)
    assert drafted.acceptance is not None
    assert 0.0 <= drafted.acceptance <= 1.0
    assert rows["plain"].acceptance is None
    # 2 · 8 layers · 128 wide · 4 bytes, of one model and of three.
    assert rows["base"].kv_bytes_per_token == 8192
    assert rows["pair"].kv_bytes_per_token == 3 * 8192


def test_tables_from_stored_rows(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--markdown FILE` prints the stored rows' tables and measures nothing."""
    assert speed.main(["--markdown", str(measured / "rows.json")]) == 0
    shown = capsys.readouterr().out
    assert "random weights" in shown
    assert shown.count("| naive |") == 2
    assert shown == table(read_rows(measured / "rows.json"), is_markdown=True)


def test_models_of_ones_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """Folders are measured too, and an adapter folder as expert brings the pair; full weights do not."""
    common = ["--base", str(folders["base"]), "--anti", str(folders["anti"]), "--workloads", "5:6@2", "--rounds", "1"]
    for expert, names in (("lora", [*NAMES]), ("expert", [name for name in NAMES if "pair" not in name])):
        path = tmp_path / f"{expert}.json"
        assert speed.main([*common, "--expert", str(folders[expert]), "--json", str(path)]) == 0
        rows = read_rows(path)
        assert [row.variant for row in rows] == names
        assert all(row.equal_rows == "2/2" for row in rows)


def test_no_time_for_a_variant_that_decodes_something_else(trio: Trio) -> None:
    """A variant that runs the base alone under our name is an error before anything is timed."""

    def cheat(requests: Requests) -> Decoded:
        return naive_batches(trio.models[:1], requests, pad_token_id=0)

    def honest(requests: Requests) -> Decoded:
        return naive_batches(trio.models, requests, pad_token_id=0)

    requests = parse_workload("6:8@2").requests(trio.prompts)
    both = [Variant(name="naive", run=honest), Variant(name="plain", run=honest)]
    rows = measure(trio, both, requests, setting(trio), rounds=1)
    assert [row.equal_rows for row in rows] == ["2/2", "2/2"]
    with pytest.raises(TokensDifferError, match="plain differs"):
        measure(trio, [both[0], Variant(name="plain", run=cheat)], requests, setting(trio), rounds=1)


def setting(trio: Trio) -> Setting:
    """What rows of a run share."""
    return Setting(
        benchmark="speed",
        models=trio.label,
        dtype="float32",
        device=torch.device("cpu"),
        device_gb_per_s=10.0,
        is_quick=False,
    )


def test_arithmetic_of_a_row(trio: Trio) -> None:
    """By hand: medians of seconds, ratios within a round, decoding apart from the prompt, bytes read per second."""

    def rounds(*seconds: float) -> list[Decoded]:
        return [Decoded(token_ids=[], seconds=value, first_token_seconds=1.0) for value in seconds]

    timed = {"base": rounds(3.0, 2.0, 5.0), "naive": rounds(9.0, 8.0, 10.0), "plain": rounds(6.0, 4.0, 5.0)}
    sizes = replace(trio, num_bytes=TrioBytes(base=2 * 10**9, expert=5 * 10**8, anti=5 * 10**8))
    requests = Requests(prompts=[[5] * 8] * 4, counts=[11] * 4, batch=4)
    row = new_row(sizes, Variant(name="plain", run=lambda _: rounds(1.0)[0]), requests, setting(trio), timed)
    assert row.seconds == 5.0
    assert row.tokens_per_s == 44 / 5
    assert row.ratio_to_base == 2.0  # of 6/3, 4/2, 5/5
    assert row.decode_ratio_to_base == 2.5  # of 5/2, 3/1, 4/4
    assert row.floor_ratio == 1.5
    assert row.percent_of_floor == 60.0
    assert row.speed_up_over_naive == 2.0  # of 9/6, 8/4, 10/5
    assert row.speed_up_over_plain == 1.0
    assert row.decode_tokens_per_s == 10.0  # 10 more tokens of 4 rows in 4 s
    assert row.read_gb_per_s == 7.5


@pytest.mark.parametrize(
    "options",
    [
        ["--variants", "fast"],
        ["--workloads", "8x8"],
        ["--shape", "llama-2m"],
        ["--shape", TINY, "--base", "somewhere"],
        ["--base", "somewhere"],
        ["--markdown", "nowhere.json"],
    ],
)
def test_what_cannot_be_measured(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name, an unreadable workload or half a trio is one sentence and exit code 2."""
    base = ["--shape", TINY] if options[0] in ("--variants", "--workloads") else []
    assert speed.main([*base, *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """Rows are read from what was written by `--json` alone."""
    other: Any = tmp_path / "other.json"
    other.write_text('[{"speed": 3}]', encoding="utf-8")
    with pytest.raises(RowsError, match=r"other\.json"):
        read_rows(other)
