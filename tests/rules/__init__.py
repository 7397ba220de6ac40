"""Tests of the transformers runtime."""
