"""One cache for the composite: its layers are those of base, expert and anti in a row, each role has a view."""

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from proxytune.errors import RuntimeUnsupportedError

_DYNAMIC = (None, "dynamic", "offloaded")
_STATIC = ("static", "offloaded_static")


class CompositeCache(Cache):
    """The key-value states of all roles.

    Whatever transformers does to a cache (reorder for beams, crop for speculation, reset) reaches every role, because
    the layers are the same objects as in the views. Roles may hold different lengths: their prompts differ, their
    continuation is shared. `get_seq_length()` is the base's.
    """

    def __init__(self, views: Sequence[Cache]) -> None:
        """Join the caches of the roles, given in the composite's order of roles."""
        super().__init__(layers=[layer for view in views for layer in view.layers])
        self.views = tuple(views)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows by `beam_idx` `[B]`; roles that α = 0 left out hold nothing to reorder."""
        for layer in self._used_layers():
            layer.reorder_cache(beam_idx.to(layer.keys.device))

    def repeated(self, rows: Tensor) -> "CompositeCache":
        """Return a dynamic cache that goes on from rows `[B]` of this one, which stays as it is."""
        views = []
        for view in self.views:
            copied = copy(view)
            copied.layers = [copy(layer) for layer in view.layers]
            views.append(copied)
        chosen = CompositeCache(views)
        chosen.reorder_cache(rows)
        return chosen

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens of every role; a negative number, as transformers passes it."""
        for layer in self._used_layers():
            layer.crop(tokens_to_remove)

    @property
    def is_compileable(self) -> bool:
        """True if every role's layers have a fixed size."""
        return all(view.is_compileable for view in self.views)

    def _used_layers(self) -> list[Any]:
        return [layer for layer in self.layers if getattr(layer, "is_initialized", True)]


def new_cache(
    configs: Sequence[Any], implementation: str | None = None, max_lengths: Sequence[int] = ()
) -> CompositeCache:
    """Return an empty cache for roles with these transformers configs.

    Args:
        configs: One model config per role; sliding windows and layer types come from it.
        implementation: As transformers' `cache_implementation`: dynamic, offloaded, static or offloaded_static.
        max_lengths: Tokens each role's static cache must hold.

    Raises:
        RuntimeUnsupportedError: Another implementation.
    """
    is_offloaded = implementation is not None and implementation.startswith("offloaded")
    if implementation in _DYNAMIC:
        return CompositeCache([DynamicCache(config=config, offloading=is_offloaded) for config in configs])
    if implementation in _STATIC:
        return CompositeCache(
            [
                StaticCache(config=config, max_cache_len=length, offloading=is_offloaded)
                for config, length in zip(configs, max_lengths, strict=True)
            ]
        )
    known = ", ".join(str(name) for name in (*_DYNAMIC[1:], *_STATIC))
    raise RuntimeUnsupportedError(
        f"cache_implementation={implementation!r} is not supported here: choose one of {known}."
    )
