"""Benchmarks by name, one file each: see `benchmarks.tasks.task` for what such a file holds."""
