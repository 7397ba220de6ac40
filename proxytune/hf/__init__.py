"""Runtime 1: the composite as an ordinary transformers model."""
