"""The experiment on real weights: SmolLM2-135M, half of its layers healed, tuned and steered (`docs/real.md`)."""
