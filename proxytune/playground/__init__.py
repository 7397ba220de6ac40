"""A local page to try steering on: the base and the steered base side by side, live, and what steering did."""

from proxytune.playground.server import Address, serve

__all__ = ["Address", "serve"]
