"""Generation of a loaded model steered by proxytune, for `generate(..., custom_generate=…)` of transformers."""

from proxytune.custom_generation import generate

__all__ = ["generate"]
