"""Tests of the engine; they mirror the package."""
