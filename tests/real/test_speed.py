"""`bench speed --trio real`."""

import json
from pathlib import Path

from benchmarks import speed


def test_every_loop_decodes_the_real_trio_alike(smollm: Path, tmp_path: Path) -> None:
    """The naive loop, transformers' generate and ours, plain and drafting: the same tokens, a row for each."""
    variants = ["naive", "generate", "plain", "speculative"]
    options = ["--trio", "real", "--dtype", "float32", "--workloads", "9:5@2", "--rounds", "1", "--variants", *variants]
    assert speed.main([*options, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {row["variant"]: row["equal_rows"] for row in rows} == dict.fromkeys(variants, "2/2")
    assert all(row["models"].startswith("smollm2-135m") for row in rows)
