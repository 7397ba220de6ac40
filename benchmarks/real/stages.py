"""Stages of the experiment: each makes one folder, which exists only when it is complete."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    """Write one line of progress to stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def stage(folder: Path, work: Callable[[Path], dict[str, Any] | None]) -> Path:
    """Return a stage's folder, made by `work` in a scratch folder beside it unless it is there already.

    `work` may return facts for the stage's facts.json; the seconds it took are added to them.
    """
    if folder.is_dir():
        return folder
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    say(f"{folder.name}: started")
    started = time.perf_counter()
    facts = work(scratch) or {}
    seconds = round(time.perf_counter() - started, 1)
    write_json(scratch / "facts.json", {**facts, "seconds": seconds})
    scratch.rename(folder)
    say(f"{folder.name}: done in {seconds / 60:.1f} minutes")
    return folder


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, a line per entry."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
