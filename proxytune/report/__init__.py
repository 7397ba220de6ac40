"""One self-contained page about traces: what steering did to every token, for people to look at."""

from proxytune.report.page import render
from proxytune.report.reading import TracedText, read_origin, read_traced_texts

__all__ = ["TracedText", "read_origin", "read_traced_texts", "render"]
