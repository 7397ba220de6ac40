"""One role inside the composite: a causal LM, perhaps with an adapter switched on or off, and how to call it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.remote_base import RemoteCausalLM


@dataclass(frozen=True)
class RolePrompt:
    """A role's prompt, instead of the base's: `input_ids` `[B, T]`, left-padded, and its mask (None: ones)."""

    input_ids: Tensor
    attention_mask: Tensor | None = None

    def expanded(self, size: int) -> "RolePrompt":
        """Return every row repeated `size` times, for beams and several sequences."""
        mask = self.attention_mask
        return RolePrompt(
            self.input_ids.repeat_interleave(size, dim=0), None if mask is None else mask.repeat_interleave(size, dim=0)
        )


@dataclass(frozen=True)
class Adapted:
    """An expert that is one adapter of a PeftModel."""

    peft_model: Any
    adapter_name: str


@dataclass(frozen=True)
class RoleModel:
    """A causal LM in its role.

    `adapter` is the PeftModel around `model` when that holds adapter layers; `adapter_name` is the one this role runs
    with, None for the untouched weights below.
    """

    name: str
    model: Any
    adapter: Any = None
    adapter_name: str | None = None
    prompt_format: str = "raw"
    accepted: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepted", frozenset(inspect.signature(self.model.forward).parameters))

    @property
    def config(self) -> Any:
        """The text config of the model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def is_remote(self) -> bool:
        """True if the model is behind an API, so that it has no weights and no cache here."""
        return isinstance(self.model, RemoteCausalLM)

    @property
    def device(self) -> torch.device:
        """Device of its input."""
        device: torch.device = self.model.device
        return device

    @property
    def logits_width(self) -> int:
        """Width of its logits, padding included."""
        head = self.model.get_output_embeddings()
        weight = None if head is None else getattr(head, "weight", None)
        # Quantised heads store packed weights, whose shape says nothing.
        if weight is None or not weight.is_floating_point():
            return int(self.config.vocab_size)
        return int(weight.shape[0])

    @property
    def max_context(self) -> int | None:
        """Longest sequence it was made for, None if it states none."""
        return getattr(self.config, "max_position_embeddings", None)

    def logits(self, inputs: dict[str, Any], logits_to_keep: int | Tensor = 0) -> Tensor:
        """Return the logits `[B, T', V]` for inputs made by `inputs` or `next_inputs`; 0 keeps every position."""
        keep = {"logits_to_keep": logits_to_keep} if "logits_to_keep" in self.accepted else {}
        with self.adapter_switched():
            logits: Tensor = self.model(**inputs, **keep).logits
        if isinstance(logits_to_keep, int):
            return logits[:, -logits_to_keep:]
        return logits if keep else logits[:, logits_to_keep]

    def inputs(self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> dict[str, Any]:
        """Return forward arguments for new tokens `[B, T]` behind what `cache` holds.

        `attention_mask` is `[B, past + T]`, or None when nothing is padded. Positions count real tokens, so left
        padding moves nothing.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        arguments = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": None if attention_mask is None else attention_mask.to(self.device),
            "position_ids": positions(attention_mask, past + input_ids.shape[1], self.device)[:, past:],
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        return {key: value for key, value in arguments.items() if key in self.accepted}

    def next_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        *,
        num_new_tokens: int | None,
        is_clamped: bool,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return forward arguments in a decoding loop, prepared by the model's own class.

        `input_ids` `[B, T]` and `attention_mask` cover prompt and continuation; `num_new_tokens` of them are not in the
        cache (None: whatever the cache lacks). `is_clamped` keeps the positions of finished rows inside the context.
        """
        if num_new_tokens is None:
            num_new_tokens = input_ids.shape[1] - (0 if cache is None else int(cache.get_seq_length()))
        position_ids = positions(attention_mask, input_ids.shape[1], self.device)
        if is_clamped and self.max_context is not None:
            position_ids = position_ids.clamp(max=self.max_context - 1)
        arguments = {
            "attention_mask": None if attention_mask is None else attention_mask.to(self.device),
            "position_ids": position_ids,
        }
        prepared: dict[str, Any] = self.model.prepare_inputs_for_generation(
            input_ids.to(self.device),
            next_sequence_length=num_new_tokens,
            past_key_values=cache,
            use_cache=cache is not None,
            **{key: value for key, value in arguments.items() if key in self.accepted},
            **kwargs,
        )
        return prepared

    @contextmanager
    def adapter_switched(self) -> Iterator[None]:
        """Run with the adapter as this role has it."""
        if self.adapter is not None and self.adapter_name is None:
            with self.adapter.disable_adapter():
                yield
            return
        if self.adapter is not None and self.adapter.active_adapter != self.adapter_name:
            self.adapter.set_adapter(self.adapter_name)
        yield


def positions(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Return position ids `[B or 1, length]`: the count of real tokens before each, 0 on padding.

    >>> import torch
    >>> positions(torch.tensor([[0, 0, 1, 1]]), 4, torch.device("cpu")).tolist()
    [[0, 0, 0, 1]]
    """
    if attention_mask is None:
        return torch.arange(length, device=device)[None]
    counted = attention_mask.to(device).long().cumsum(-1) - 1
    return counted.clamp(min=0)


def distinct_roles(
    config: ProxyTunedConfig, base: Any, pairs: Sequence[tuple[Any, Any]]
) -> tuple[list[RoleModel], list[tuple[int, int]]]:
    """Return the roles without repetition and, per pair, the indices of expert and anti among them."""
    roles: list[RoleModel] = []
    # peft injects its layers into the model it adapts, so whoever else runs that model must switch them off.
    adapted = [model for model in (base, *chain(*pairs)) if isinstance(model, Adapted)]
    wrappers = {id(entry.peft_model.get_base_model()): entry.peft_model for entry in adapted}

    def index_of(name: str, model: Any, prompt_format: str) -> int:
        adapter_name = model.adapter_name if isinstance(model, Adapted) else None
        inner = model.peft_model.get_base_model() if isinstance(model, Adapted) else model
        for index, role in enumerate(roles):
            if (role.model is inner, role.adapter_name, role.prompt_format) == (True, adapter_name, prompt_format):
                return index
        roles.append(RoleModel(name, inner, wrappers.get(id(inner)), adapter_name, prompt_format))
        return len(roles) - 1

    index_of("base", base, config.base_prompt)
    pair_roles = []
    for number, (expert, anti) in enumerate(pairs):
        suffix = "" if len(pairs) == 1 else f"_{number + 1}"
        expert_format, anti_format = config.prompt_formats(number)
        expert_index = index_of(f"expert{suffix}", expert, expert_format)
        pair_roles.append((expert_index, index_of(f"anti{suffix}", anti, anti_format)))
    return roles, pair_roles
