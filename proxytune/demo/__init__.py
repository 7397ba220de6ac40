"""The demo: a bundled trio of tiny models in a made-up world, the recipe that trained them, and a live run on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from proxytune.demo.report import DemoReport

__all__ = ["run", "trio_path"]


def trio_path() -> Path:
    """The folder of the bundled trio: base, expert, anti, and recorded.json."""
    return Path(__file__).parent / "trio"


def run(*, trio: Path | None = None, seed: int = 0, alpha: float = 1.0, progress: TextIO | None = None) -> DemoReport:
    """Tune an expert from the trio's anti, steer the trio's base with it, and measure all roles on held-out people.

    See `proxytune.demo.live.run`; the heavy imports happen here, not when the package is imported.
    """
    from proxytune.demo import live

    return live.run(trio=trio or trio_path(), seed=seed, alpha=alpha, progress=progress)
