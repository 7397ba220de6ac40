"""Grids of training runs with error bars: every noise, every strength, several seeds."""
