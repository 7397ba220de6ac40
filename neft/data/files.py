"""Data files as numbered rows: each kind is one function, and one entry in `FILE_KINDS`."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from neft.data.json_rows import NumberedRow, json_array, json_lines
from neft.errors import DataError, InputError

_BATCH = 1024


def text_lines(stream: BinaryIO, name: str) -> Iterator[NumberedRow]:
    """Yields every line that is not blank as `{"text": line}`; texts with line breaks belong in a .jsonl file."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, row {number} is not UTF-8 at its byte {error.start}; convert it.") from error
        if text.strip():
            yield number, {"text": text.rstrip("\r\n")}


def parquet(stream: BinaryIO, name: str) -> Iterator[NumberedRow]:
    """Yields the rows of a Parquet file."""
    pyarrow = _optional("pyarrow", "a .parquet file")
    try:
        batches = _optional("pyarrow.parquet", "a .parquet file").ParquetFile(stream).iter_batches(_BATCH)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowException as error:
        raise DataError(f"{name} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def delimited(stream: BinaryIO, name: str, *, delimiter: str) -> Iterator[NumberedRow]:
    """Yields the rows of a table whose first line names its columns; every cell is a text."""
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise DataError(f"{name}, row {number} has another number of cells than the first line has names.")
            yield number, dict(row)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8; convert it.") from error
    except csv.Error as error:
        raise DataError(f"{name} is not a table with a first line of names: {error}.") from error
    finally:
        lines.detach()  # the stream is closed by its owner


FILE_KINDS: dict[str, Callable[[BinaryIO, str], Iterator[NumberedRow]]] = {
    ".csv": partial(delimited, delimiter=","),
    ".json": json_array,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".parquet": parquet,
    ".tsv": partial(delimited, delimiter="\t"),
    ".txt": text_lines,
}


def read_rows(path: Path, *, dataset_split: str | None = None) -> Iterator[NumberedRow]:
    """Yields the rows of a data file or `datasets` folder, numbered from 1 (lines of a file, elements of an array).

    The kind is the file's suffix, one of `FILE_KINDS`; all but .parquet may be gzipped (`.jsonl.gz`).

    Args:
        path: A file, or a folder that `datasets` wrote with `save_to_disk`.
        dataset_split: Split of a folder with several.

    Raises:
        InputError: there are several splits and none is chosen, or there is none to choose from.
        DataError: the file cannot be read or is not what its suffix says.
    """
    try:
        if path.is_dir():
            yield from _dataset_rows(path, dataset_split)
            return
        if dataset_split is not None:
            raise InputError(f"dataset_split is {dataset_split!r}, but {path} is not a datasets folder; leave it out.")
        yield from _file_rows(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}; check the path.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of all files in a `datasets` folder.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for part in sorted(part for part in path.rglob("*") if part.is_file()):
            digest.update(f"{part.relative_to(path)}\0{checksum(part)}\n".encode())
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}; check the path.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _file_rows(path: Path) -> Iterator[NumberedRow]:
    with path.open("rb") as file:
        name = path.name.lower()
        is_gzipped = name.endswith(".gz")
        suffix = Path(name.removesuffix(".gz")).suffix
        if suffix not in FILE_KINDS or (is_gzipped and suffix == ".parquet"):
            kinds = ", ".join(FILE_KINDS)
            raise DataError(
                f"{path} cannot be read: its kind is not known; name it {kinds} (or .gz of a text one), "
                "or give a datasets folder."
            )
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzipped else file
        yield from FILE_KINDS[suffix](stream, str(path))


def _dataset_rows(path: Path, dataset_split: str | None) -> Iterator[NumberedRow]:
    has_splits = (path / "dataset_dict.json").is_file()
    if not has_splits and not (path / "state.json").is_file():
        raise DataError(f"{path} cannot be read: it is a folder without a data set that datasets saved (save_to_disk).")
    datasets = _optional("datasets", "a datasets folder")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise DataError(f"{path} cannot be read: datasets cannot load it ({error}).") from error
    if has_splits:
        loaded = _chosen_split(loaded, dataset_split, path)
    elif dataset_split is not None:
        raise InputError(f"dataset_split is {dataset_split!r}, but {path} holds a single data set; leave it out.")
    tables = loaded.with_format("arrow").iter(_BATCH)
    yield from enumerate((row for table in tables for row in table.to_pylist()), start=1)


def _chosen_split(splits: Any, name: str | None, path: Path) -> Any:
    if name is None and len(splits) == 1:
        return next(iter(splits.values()))
    if name not in splits:
        given = "is not given" if name is None else f"is {name!r}"
        raise InputError(f"dataset_split {given}; {path} has {', '.join(splits)}.")
    return splits[name]


def _optional(module: str, purpose: str) -> Any:
    """Imports a package of the extra `neft`; a broken installation keeps its own error."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(f"{purpose} needs {error.name}; install proxytune[neft].") from error
