"""The recipe's numbers: the world, the text, the two model sizes and how they are trained and tuned."""

from __future__ import annotations

from dataclasses import dataclass

from proxytune.demo.pretrain import ModelSize
from proxytune.demo.text import TextMix
from proxytune.demo.tuning import TuningPlan
from proxytune.demo.world import World, WorldSize, build_world

WORLD = WorldSize()
TEXT = TextMix()
BASE = ModelSize(width=256, num_layers=3, num_heads=4, inner_width=640, num_steps=2500, learning_rate=1.5e-3)
ANTI = ModelSize(width=64, num_layers=3, num_heads=2, inner_width=160, num_steps=3000, learning_rate=3e-3)
# The noise of 0.5, 1, 2, 5 and 10 with the least held-out loss (docs/neft.md); the bundled expert was tuned with 5.
EXPERT_PLAN = TuningPlan(learning_rate=3e-4, noise_alpha=1.0, max_steps=150)
TUNED_BASE_PLAN = TuningPlan(learning_rate=2e-4, noise_alpha=5.0, max_steps=150)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the trio's weights; each random draw is derived from the seed.

    `is_bfloat16` takes pretraining's products in bfloat16: faster where the CPU can, and other weights.
    """

    seed: int = 0
    world_size: WorldSize = WORLD
    mix: TextMix = TEXT
    vocab_size: int = 1344
    is_bfloat16: bool = False
    base: ModelSize = BASE
    anti: ModelSize = ANTI

    def world(self) -> World:
        """The world that the text is about."""
        return build_world(seed=self.seed, size=self.world_size)
