"""Damaged and hostile folders: generated cases, each of which must end in one sentence."""
