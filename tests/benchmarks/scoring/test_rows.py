"""Reading files of predictions: the formats, and what is said of files that cannot be read."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.scoring.rows import read_rows
from proxytune.errors import InputError

_ROWS = [{"a": "é"}, {"a": "line\u2028separator"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz"])
def test_every_format_reads_the_same(tmp_path: Path, name: str) -> None:
    """JSON Lines and arrays, plain and gzipped, hold the same rows; an empty line is none."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in _ROWS) + "\n\n"
    text = lines if ".jsonl" in name else json.dumps(_ROWS, ensure_ascii=False)
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [dict(row.fields) for row in read_rows(tmp_path / name)] == _ROWS


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: is no JSON"),
        ("x.jsonl", b'{"a": 1}\n\n[1]\n', r"x\.jsonl, line 3: is no object but list"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl, line 2: is no UTF-8"),
        ("x.jsonl", b"\n", r"x\.jsonl holds no row"),
        ("x.json", b'[\n{"a": 1},\n{"a" 2}]', r"x\.json, line 3: is no JSON"),
        ("x.json", b'{"a": 1}\n{"a": 2}\n', r"x\.json, line 2: is no JSON .*name it \.jsonl"),
        ("x.json", b'{"a": 1}', r"x\.json, line 1: is no array of objects but dict"),
        ("x.json", b"[{}, 1]", r"x\.json, row 2: is no object but int"),
        ("x.json.gz", b"[]", r"x\.json\.gz cannot be read"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], r"x\.jsonl\.gz cannot be read"),
        ("x.csv", b"a\n", r"x\.csv: a file of predictions is named"),
    ],
)
def test_unreadable_files_name_the_line(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    """What is broken is refused with the file and the line (or the row of the array)."""
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is an input error with its path."""
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_missing_field_names_what_there_is(tmp_path: Path) -> None:
    """A row without a field says which fields it holds; one that is no text says what it is."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": 2}\n', encoding="utf-8")
    (row,) = read_rows(path)
    with pytest.raises(InputError, match=r"line 1: there is no field 'c'; the row holds a, b"):
        row.text("c")
    with pytest.raises(InputError, match=r"line 1: field 'a' is 1, not text"):
        row.text("a")
