"""From a file of rows to batches: files, formats, templates, tokens, padding or packing.

Importing this package is light: torch is imported by the first batch, or with `neft.data.isolation`.
"""

from __future__ import annotations

from neft.data.collating import PaddingCollator
from neft.data.documents import Document, Segment, Turn
from neft.data.examples import IGNORED, Example
from neft.data.files import FILE_KINDS, checksum
from neft.data.formats import FORMATS
from neft.data.packing import Pack, PackedData, PackingCollator, pack
from neft.data.reading import detect_format, read_documents
from neft.data.report import DataReport, LengthStatistics, TokenizedData
from neft.data.splitting import num_shared_prompts, split
from neft.data.templates import CHAT, TEMPLATES
from neft.data.tokenizing import tokenize

__all__ = [
    "CHAT",
    "FILE_KINDS",
    "FORMATS",
    "IGNORED",
    "TEMPLATES",
    "DataReport",
    "Document",
    "Example",
    "LengthStatistics",
    "Pack",
    "PackedData",
    "PackingCollator",
    "PaddingCollator",
    "Segment",
    "TokenizedData",
    "Turn",
    "checksum",
    "detect_format",
    "num_shared_prompts",
    "pack",
    "read_documents",
    "split",
    "tokenize",
]
