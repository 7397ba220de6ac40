"""The output folder: filled aside, moved into place whole, and never over something else by accident."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neft.errors import OutputError

RECORD_FILE = "neft.json"
LOG_FILE = "log.jsonl"
_OFF = (None, False, "no")


def check_output(output: Path, *, identity: dict[str, Any], inputs: list[Path], overwrite: bool) -> None:
    """Checks, before any work, that a run may write its output folder.

    A folder is free if it is absent, empty, or holds the result of the very same run (`identity` is part of its
    `neft.json`); anything else needs `overwrite`.

    Raises:
        OutputError: the folder is taken, is a file, or contains one of the inputs or the working folder.
    """
    target = output.resolve()
    for path in (*inputs, Path.cwd(), Path.home()):
        if path.resolve().is_relative_to(target):
            raise OutputError(f"output {output} would replace {path}; choose a folder of its own.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"output {output} is a file; choose a folder.")
    is_taken = target.is_dir() and any(target.iterdir()) and not _holds_same_run(target, identity)
    if is_taken and not overwrite:
        raise OutputError(f"output {output} already holds something else; choose another folder or add --overwrite.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yields an empty folder beside the output that takes the output's place when the block ends well.

    After an exception it is removed. A killed process leaves it behind under its hidden name, never as the output.

    Raises:
        OutputError: the folder cannot be made.
    """
    target = output.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"output {output} cannot be made: {error.strerror}.") from error
    try:
        yield work
        work.chmod(0o755)
        _replace_folder(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_or_rescue(output: Path, write: Callable[[Path], None]) -> None:
    """Fills the output folder or, if that fails, one in the temporary or the home directory: no finished run is lost.

    Raises:
        OutputError: the output could not be written; the message says where the result is instead.
    """
    try:
        with whole_folder(output) as folder:
            write(folder)
    except Exception as error:
        for parent in (Path(tempfile.gettempdir()), Path.home()):
            rescued = Path(tempfile.mkdtemp(prefix=f"{output.name}-", dir=parent))
            try:
                write(rescued)
            except Exception:  # noqa: BLE001 - whatever it is, the next directory may do
                shutil.rmtree(rescued, ignore_errors=True)
                continue
            reason = " ".join(str(error).split())
            raise OutputError(
                f"output {output} could not be written ({reason}); the finished result is in {rescued}, move it there."
            ) from error
        raise


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `neft.json`, the account of the run."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the account beside a model, or nothing if there is none that can be read."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _replace_folder(work: Path, target: Path) -> None:
    """Moves a folder into place; what was there is removed only after that."""
    if not target.exists():
        work.replace(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.replace(old)
    try:
        work.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _holds_same_run(folder: Path, identity: dict[str, Any]) -> bool:
    record = read_record(folder)
    return all(_is_part(value, record.get(key)) for key, value in identity.items())


def _is_part(expected: Any, recorded: Any) -> bool:
    if isinstance(expected, dict) and isinstance(recorded, dict):
        # An option that the record does not know, and that is off, did not exist when it was written.
        return all(
            recorded.get(key) == value or (key not in recorded and value in _OFF) for key, value in expected.items()
        )
    return bool(expected == recorded)
