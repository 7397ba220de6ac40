"""Arguments of the composite: what each role makes of them, and what several models cannot share."""

from typing import Any

import torch
from torch import Tensor

from proxytune.errors import RuntimeUnsupportedError, UnknownOptionError
from proxytune.hf.cache import CompositeCache
from proxytune.hf.role import RolePrompt

# What transformers and tokenizers hand to every model, and changes nothing for these.
_MEANINGLESS = frozenset(
    {
        "cache_position",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "token_type_ids",
        "use_cache",
    }
)


def with_prompt(
    input_ids: Tensor, attention_mask: Tensor | None, prompt: RolePrompt | None, prompt_length: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return a role's ids and mask: its own prompt, then the continuation that all roles share."""
    if prompt is None:
        return input_ids, attention_mask
    continuation = input_ids[:, prompt_length:].to(prompt.input_ids.device)
    ids = torch.cat([prompt.input_ids, continuation], dim=1)
    if prompt.attention_mask is None:
        return ids, None
    ones = prompt.attention_mask.new_ones(continuation.shape)
    return ids, torch.cat([prompt.attention_mask, ones], dim=1)


def composite_cache(cache: Any) -> CompositeCache | None:
    """Return a cache that the composite can use; raise RuntimeUnsupportedError for one of a single model."""
    if cache is None or isinstance(cache, CompositeCache):
        return cache
    raise RuntimeUnsupportedError(
        f"past_key_values is a {type(cache).__name__}, and the composite keeps one cache for all roles: "
        "pass model.new_cache()."
    )


def refuse_unshareable(kwargs: dict[str, Any]) -> None:
    """Raise for arguments that mean nothing to several models at once."""
    if kwargs.get("inputs_embeds") is not None:
        raise RuntimeUnsupportedError(
            "inputs_embeds cannot be shared: the roles have embeddings of their own; pass input_ids."
        )
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.get(name):
            raise RuntimeUnsupportedError(f"{name} is per role: call model.roles[i].model for it.")
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _MEANINGLESS]
    if unknown:
        raise UnknownOptionError(
            f"the composite takes no {unknown[0]!r}: it makes positions and masks for each role from attention_mask."
        )
