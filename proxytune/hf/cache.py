"""One cache for the composite: its layers are those of base, expert and anti in a row, each role has a view."""

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from proxytune.errors import RuntimeUnsupportedError

_DYNAMIC = (None, "dynamic", "offloaded")
_STATIC = ("static", "offloaded_static")


class StateCache(DynamicCache):
    """A cache of layers that keep a state and no keys.

    Attributes:
        num_tokens: Tokens read so far, counted by who calls the model, since no layer knows it.
    """

    num_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens read."""
        return self.num_tokens

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self.num_tokens = 0


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

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that the base has read."""
        return int(self.views[0].get_seq_length(layer_idx))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows by `beam_idx` `[B]`; roles that α = 0 left out hold nothing to reorder."""
        for layer in self._used_layers():
            layer.reorder_cache(beam_idx)

    def repeated(self, rows: Tensor) -> "CompositeCache":
        """Return a dynamic cache that goes on from rows `[B]` of this one, which stays as it is."""
        views = []
        for view in self.views:
            copied = copy(view)
            copied.layers = [_copied(layer) for layer in view.layers]
            views.append(copied)
        chosen = CompositeCache(views)
        chosen.reorder_cache(rows)
        return chosen

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens of every role; a negative number, as transformers passes it.

        Raises:
            RuntimeUnsupportedError: A role keeps a state, from which nothing can be taken back.
        """
        try:
            for layer in self._used_layers():
                layer.crop(tokens_to_remove)
        except RuntimeError as error:
            raise RuntimeUnsupportedError(
                "a role keeps a running state, from which rejected drafts cannot be taken back: generate without an "
                "assistant."
            ) from error

    @property
    def is_compileable(self) -> bool:
        """True if every role's layers have a fixed size."""
        return all(isinstance(view, StaticCache) and view.is_compileable for view in self.views)

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
        return CompositeCache([_dynamic(config, is_offloaded) for config in configs])
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


def _dynamic(config: Any, is_offloaded: bool) -> DynamicCache:
    """Return a growing cache for one role."""
    cache = DynamicCache(config=config, offloading=is_offloaded)
    if cache.layers and all(cache.is_linear):
        return StateCache(config=config, offloading=is_offloaded)
    return cache


def _copied(layer: Any) -> Any:
    """Return a copy of a layer whose tensors may be replaced: some keep them in dicts."""
    copied = copy(layer)
    vars(copied).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    return copied
