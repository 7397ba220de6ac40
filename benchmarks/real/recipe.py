"""The recipe of the experiment on real weights: every size, rate and number of steps, and where its folders are."""

from dataclasses import dataclass, field
from pathlib import Path

from proxytune.fetching import cache_folder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings by which the trio is made and measured; `make real` takes this one.

    Attributes:
        num_layers: Layers of M−, of M's 30.
        num_solving_texts: Texts on which the layers' outputs are solved.
        healing_width: Most tokens of a text to heal on.
        row_tokens: Every row, prompt and answer, is shorter than this.
        sizes: Rows to tune on, to choose α on, and held out.
        noise_alpha: NEFTune's α of both tunings.
        pair_passes: Passes of M+ over the tuning rows.
    """

    model: str = "smollm2-135m"
    num_layers: int = 15
    num_solving_texts: int = 128
    healing_steps: int = 400
    healing_batch: int = 8
    healing_width: int = 144
    healing_rate: float = 6e-4
    row_tokens: int = 160
    sizes: tuple[int, int, int] = (192, 32, 96)
    tuning_batch: int = 8
    pair_rate: float = 4e-4
    pair_passes: int = 2
    direct_rate: float = 1.5e-4
    direct_passes: int = 1
    noise_alpha: float = 0.0
    behaviours: tuple[str, ...] = ("gsm8k", "alpaca")
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    num_generated: int = 24
    max_new_tokens: int = 120
    folder: Path = field(default_factory=lambda: cache_folder() / "real")
