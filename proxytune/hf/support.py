"""Kinds of forward that give a model's exact logits."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Support:
    """Kinds of forward whose logits equal those of one forward over the text alone, uncached and unpadded.

    Attributes:
        positions: Position ids that count from 0; else the model counts for itself.
        padding: Rows padded on the left, with a mask.
        cache: One token behind a cache.
        chunks: Several tokens behind a cache.
        reorder: Rows of a cache chosen anew, as beams need.
        gaps: Padding between the cached tokens and the new ones; no forward of a few tokens shows it, as windows and
            distances are long, so it is given to architectures that tests prove.
    """

    positions: bool = True
    padding: bool = True
    cache: bool = True
    chunks: bool = True
    reorder: bool = True
    gaps: bool = True

    def __and__(self, other: "Support") -> "Support":
        """Return what both support."""
        return Support(*(getattr(self, each.name) and getattr(other, each.name) for each in fields(self)))


EXACT = Support()
