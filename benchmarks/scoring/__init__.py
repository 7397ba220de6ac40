"""Scores of benchmark outputs from their per-question files: pure functions, no model, no network."""
