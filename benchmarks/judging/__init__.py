"""Judging open answers, as a step of its own behind a run: local judge models, or any OpenAI-compatible server."""
