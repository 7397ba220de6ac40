"""The wheel: its packages, and a command that runs from it alone."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

_ROOT = Path(__file__).parents[1]
_SOURCES = ("proxytune", "neft", "benchmarks", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="a wheel is built by setuptools")
def test_wheel_has_names_of_its_own(tmp_path: Path) -> None:
    """The folder `benchmarks` becomes `proxytune_benchmarks`, where no module imports the other name, and runs."""
    (tmp_path / "source").mkdir()
    for name in _SOURCES:
        copy = shutil.copytree if (_ROOT / name).is_dir() else shutil.copy
        copy(_ROOT / name, tmp_path / "source" / name)
    options = "--no-index --no-deps --no-build-isolation --quiet --wheel-dir ."
    command = ["pip", "wheel", "./source", *options.split()]
    subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    ZipFile(wheel).extractall(tmp_path / "site")
    packages = {path.name for path in (tmp_path / "site").iterdir() if path.suffix != ".dist-info"}
    assert packages == {"proxytune", "neft", "proxytune_benchmarks"}
    sources = {path: path.read_text() for path in (tmp_path / "site" / "proxytune_benchmarks").rglob("*.py")}
    assert not [path for path, text in sources.items() if re.search(r"(from|import|-m) benchmarks\b", text)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    bench = [sys.executable, "-m", "proxytune", "bench", "score", "--help"]
    done = subprocess.run(bench, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "usage: proxytune bench score" in done.stdout
