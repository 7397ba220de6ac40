"""Kinds of files: the same rows from each, and what is said about damaged ones."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest

from neft.data import checksum, json_rows, read_documents
from neft.data.files import read_rows
from neft.errors import DataError, InputError

ROWS = [{"prompt": f"p{n}", "completion": "é\u2028\n"} for n in range(3)]
NUMBERED = list(enumerate(ROWS, start=1))


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def _array(rows=ROWS):
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(delimiter):
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, ROWS[0], delimiter=delimiter)
    table.writeheader()
    table.writerows(ROWS)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", _array()),
        ("a.json", "\ufeff \n" + _array() + "\n "),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json.gz", gzip.compress(_array().encode(), mtime=0)),
        ("a.jsonl", "\ufeff" + _lines().replace("\n{", "\r\n{")),
        ("a.ndjson", _lines()),
        ("a.csv", _table(",")),
        ("a.csv", "\ufeff" + _table(",")),
        ("a.tsv", _table("\t")),
        ("a.csv.gz", gzip.compress(_table(",").encode(), mtime=0)),
        ("A.JSONL.GZ", gzip.compress(_lines().encode(), mtime=0)),
    ],
)
def test_files_give_the_same_rows(tmp_path, name, content):
    """Arrays, arrays under `data`, lines, tables, gzipped or not, with a byte order mark: rows numbered from 1."""
    assert list(read_rows(_write(tmp_path / name, content))) == NUMBERED


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    """Where the pieces of the stream end changes nothing, in the middle of a letter, a string or between rows."""
    monkeypatch.setattr(json_rows, "_PIECE", piece)
    assert list(read_rows(_write(tmp_path / "a.json", _array()))) == NUMBERED
    assert list(read_rows(_write(tmp_path / "b.json", " [ ] "))) == []


def test_an_array_streams(tmp_path):
    """The first row of an array is there before a fault far behind it is read."""
    path = _write(tmp_path / "a.json", "[" + '{"n": 1},' * 150_000 + "oops]")
    rows = read_rows(path)
    assert next(rows) == (1, {"n": 1})
    with pytest.raises(DataError, match="row 150001 is not JSON"):
        list(rows)


def test_parquet_rows(tmp_path):
    """A Parquet file gives its rows over several batches; lists of objects come as such."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"conversations": [{"from": "human", "value": str(n)}]} for n in range(2500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(rows, start=1))


def test_datasets_folders(tmp_path):
    """A saved data set is read; of several splits one must be chosen, a single one need not be."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "one")
    assert list(read_rows(tmp_path / "plain")) == NUMBERED
    assert list(read_rows(tmp_path / "one")) == NUMBERED
    assert list(read_rows(tmp_path / "splits", dataset_split="test")) == NUMBERED[:1]
    with pytest.raises(InputError, match=r"dataset_split is not given; .* has train, test"):
        list(read_rows(tmp_path / "splits"))
    with pytest.raises(InputError, match=r"dataset_split is 'dev'; .* has train, test"):
        list(read_rows(tmp_path / "splits", dataset_split="dev"))
    with pytest.raises(InputError, match="holds a single data set"):
        list(read_rows(tmp_path / "plain", dataset_split="train"))
    (tmp_path / "plain" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="plain cannot be read"):
        list(read_rows(tmp_path / "plain"))


def test_text_files_have_a_document_per_line(tmp_path):
    """Every line that is not blank is one text, with its spaces; blank lines count."""
    path = _write(tmp_path / "a.txt", "\ufefffirst \r\n\n  third\u2028x")
    assert list(read_rows(path)) == [(1, {"text": "first "}), (3, {"text": "  third\u2028x"})]
    documents = read_documents(path, format="text")
    assert [document.row for document in documents] == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{', "row 2 is not JSON: .* at column 2"),
        ("a.jsonl", '{"prompt": "a"}\n[1]', "row 2 is a JSON list; give an object per line"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "row 2 is not UTF-8 at its byte 12"),
        ("a.jsonl", "{}\n" + '{"a":' * 100_000, "row 2 is nested too deeply"),
        ("a.json", '[{"a": 1}, {"a": }]', "row 2 is not JSON: Expecting value"),
        ("a.json", '[{"a": 1}, {"a": 2', "row 2 is not JSON"),
        ("a.json", '[{"a": 1}, 7]', "row 2 is a JSON int; give an array of objects"),
        ("a.json", '[{"a": 1} {"a": 2}]', "row 1 is followed by '{', not by a comma"),
        ("a.json", '[{"a": 1}', "row 1 is followed by the end of the file"),
        ("a.json", '[{"a": 1},]', "row 2 is not JSON"),
        ("a.json", '[{"a": 1}] []', "goes on after the end of its array"),
        ("a.json", "[" * 100_000, "row 1 is nested too deeply"),
        ("a.json", "", "does not begin with a JSON array"),
        ("a.json", b'[{"a": 1}, {"a": "\xff"}]', "not UTF-8 somewhere after row 0"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', r"Extra data at line 2, column 1; a file with one object per line"),
        ("a.json", '{"rows": []}', 'without an array "data"'),
        ("a.json", '{"data": [{}, 3]}', "row 2 is a JSON int"),
        ("a.json.gz", b"[{}]", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("a.txt", b"ok\n\xff", "row 2 is not UTF-8"),
        ("a.parquet", b"PAR1 this is none", "a.parquet"),
        ("a.csv", "a,b\n1,2\n3\n", "row 2 has another number of cells"),
        ("a.csv", "a,b\n1,2,3\n", "row 1 has another number of cells"),
        ("a.tsv", b"a\tb\n\xff\t2\n", "is not UTF-8"),
        ("a.xlsx", "", "its kind is not known; name it .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .txt"),
        ("a.parquet.gz", b"", "its kind is not known"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, complaint):
    """The message has the file, the row where there is one, and what is wrong."""
    path = _write(tmp_path / name, content)
    with pytest.raises(DataError, match=complaint) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    """Absent, empty and a plain folder: each is a data error that says which."""
    empty = _write(tmp_path / "empty.jsonl", "\n\n")
    cases = [
        (tmp_path / "none.jsonl", "no data file"),
        (empty, "has no rows"),
        (_write(tmp_path / "empty.json", "[]"), "has no rows"),
        (tmp_path, "a folder without a data set that datasets saved"),
    ]
    for path, complaint in cases:
        with pytest.raises(DataError, match=complaint):
            read_documents(path, format="prompt-completion")


def test_the_checksum_of_a_file_and_of_a_folder(tmp_path):
    """A file has its SHA-256; a folder's changes with the content and the name of any file in it."""
    assert checksum(_write(tmp_path / "a.txt", "abc")).startswith("ba7816bf8f01cfea")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    file = _write(tmp_path / "folder" / "inner" / "x", "abc")
    sums = [checksum(tmp_path / "folder")]
    assert sums == [checksum(tmp_path / "folder")]
    file = file.rename(file.with_name("y"))
    sums.append(checksum(tmp_path / "folder"))
    file.write_text("abd")
    sums.append(checksum(tmp_path / "folder"))
    assert len(set(sums)) == 3
    with pytest.raises(DataError, match="no data file"):
        checksum(tmp_path / "none")
