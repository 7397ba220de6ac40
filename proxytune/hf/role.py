"""One role inside the composite: a causal LM, perhaps with an adapter switched on or off, and how to call it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, StaticCache

from proxytune.errors import RoleError, RuntimeUnsupportedError
from proxytune.hf.cache import StateCache
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.remote_base import RemoteCausalLM
from proxytune.hf.support import EXACT, Support


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
    with, None for the untouched weights below. `support` says which kinds of forward are exact.
    """

    name: str
    model: Any
    adapter: Any = None
    adapter_name: str | None = None
    prompt_format: str = "raw"
    support: Support = EXACT
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
        names = ("max_position_embeddings", "max_target_positions")
        length = next((value for name in names if (value := getattr(self.config, name, None)) is not None), None)
        if length is None or length < 1:  # some say -1
            return None
        # Models that count for themselves begin behind the position of padding.
        return int(length) if self.support.positions else int(length) - (self.config.pad_token_id or 0) - 1

    @property
    def rope_limit(self) -> int | None:
        """Length beyond which all tokens of a text have other rotary frequencies (longrope), None if there is none."""
        parameters = getattr(self.config, "rope_parameters", None) or {}
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        limits = [
            entry["original_max_position_embeddings"]
            for entry in nested or [parameters]
            if entry.get("rope_type") == "longrope"
        ]
        return min(limits, default=None)

    def logits(self, inputs: dict[str, Any], logits_to_keep: int | Tensor = 0) -> Tensor:
        """Return the logits `[B, T', V]` for inputs made by `inputs` or `next_inputs`; 0 keeps every position."""
        limit = self.rope_limit
        length = inputs["input_ids"].shape[1]
        num_kept = logits_to_keep if isinstance(logits_to_keep, int) else 0
        if (
            limit is not None
            and (num_kept or length) > max(length - limit, 0) > 0
            and inputs.get("past_key_values") is None
        ):
            # Every token is predicted with the frequencies of the text before it.
            short = {key: value[:, :limit] if isinstance(value, Tensor) else value for key, value in inputs.items()}
            joined = torch.cat([self._forward(short, 0), self._forward(inputs, length - limit)], dim=1)
            return joined[:, -num_kept:] if isinstance(logits_to_keep, int) else joined[:, logits_to_keep]
        return self._forward(inputs, logits_to_keep)

    def _forward(self, inputs: dict[str, Any], logits_to_keep: int | Tensor) -> Tensor:
        keep = {"logits_to_keep": logits_to_keep} if "logits_to_keep" in self.accepted else {}
        with self.adapter_switched():
            logits: Tensor = self.model(**inputs, **keep).logits
        cache = inputs.get("cache_params")
        if isinstance(cache, StateCache):
            cache.num_tokens += inputs["input_ids"].shape[1]
        if isinstance(logits_to_keep, int):
            return logits[:, -logits_to_keep:]
        return logits if keep else logits[:, logits_to_keep]

    def inputs(self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> dict[str, Any]:
        """Return forward arguments for new tokens `[B, T]` behind what `cache` holds.

        `attention_mask` is `[B, past + T]`, or None when nothing is padded. Positions count real tokens, so left
        padding moves nothing.

        Raises:
            RuntimeUnsupportedError: Padding, or a length, that would change the logits of this model.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        length = past + input_ids.shape[1]
        mask = self._checked_mask(attention_mask, length)
        if self._is_behind_limit(past, length):
            raise RuntimeUnsupportedError(
                f"{self.name} reads {length} tokens, and beyond {self.rope_limit} its rotary frequencies change, "
                "those of cached tokens too: pass the full text without a cache."
            )
        return self._arguments(input_ids, mask, positions(attention_mask, length, self.device)[:, past:], cache, past)

    def next_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        *,
        num_new_tokens: int | None,
        is_clamped: bool,
    ) -> dict[str, Any]:
        """Return forward arguments in a decoding loop.

        `input_ids` `[B, T]` and `attention_mask` cover prompt and continuation; `num_new_tokens` of them are not in the
        cache (None: whatever the cache lacks). `is_clamped` keeps the positions of finished rows inside the context.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and self._is_behind_limit(past, input_ids.shape[1]):
            cache.reset()
            past, num_new_tokens = 0, None
        if num_new_tokens is None:
            num_new_tokens = input_ids.shape[1] - past
        length = past + num_new_tokens
        position_ids = positions(attention_mask, max(length, input_ids.shape[1]), self.device)
        if is_clamped and self.max_context is not None:
            position_ids = position_ids.clamp(max=self.max_context - 1)
        mask = self._checked_mask(attention_mask, length)
        if self.is_remote or isinstance(cache, StaticCache):
            return self._static_inputs(input_ids, mask, position_ids, cache, num_new_tokens)
        return self._arguments(input_ids[:, -num_new_tokens:], mask, position_ids[:, -num_new_tokens:], cache, past)

    def _checked_mask(self, attention_mask: Tensor | None, length: int) -> Tensor | None:
        """Return the mask as this model takes it.

        Raises:
            RuntimeUnsupportedError: It masks something, and this model reads padded rows otherwise than rows alone.
        """
        is_alone = not self.support.padding or (self.rope_limit is not None and length > self.rope_limit)
        if attention_mask is None or not is_alone:
            return attention_mask
        if not bool(attention_mask.all()):
            raise RuntimeUnsupportedError(
                f"{self.name} ({self.config.model_type}) reads a padded row otherwise than the row alone: pass one row "
                "at a time, or rows of one length."
            )
        return None

    def _is_behind_limit(self, past: int, length: int) -> bool:
        """Return whether cached tokens have frequencies that no longer hold."""
        return self.rope_limit is not None and 0 < past <= self.rope_limit < length

    def _arguments(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Cache | None, past: int
    ) -> dict[str, Any]:
        """Return those of the forward arguments that the model takes, for tokens that are all new."""
        arguments = {
            "input_ids": input_ids.to(self.device),
            "attention_mask": None if attention_mask is None else attention_mask.to(self.device),
            # Some models index them by row.
            "position_ids": position_ids.expand(input_ids.shape[0], -1),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        accepted = self.accepted if self.support.positions else self.accepted - {"position_ids"}
        if "past_key_values" not in accepted and "cache_params" in accepted:
            # Layers that keep a state mask the prompt, and nothing behind it.
            arguments |= {"cache_params": cache, "attention_mask": None if past else arguments["attention_mask"]}
        return {key: value for key, value in arguments.items() if key in accepted}

    def _static_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Cache | None,
        num_new_tokens: int,
    ) -> dict[str, Any]:
        """Return forward arguments prepared by the model's own class, which makes masks of the cache's size."""
        arguments = {"attention_mask": attention_mask, "position_ids": position_ids}
        prepared: dict[str, Any] = self.model.prepare_inputs_for_generation(
            input_ids.to(self.device),
            next_sequence_length=num_new_tokens,
            past_key_values=cache,
            use_cache=True,
            **{key: value for key, value in arguments.items() if key in self.accepted},
        )
        prepared.pop("logits_to_keep", None)
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
) -> tuple[list[RoleModel], list[tuple[int, int | None]]]:
    """Return the roles without repetition and, per pair, the indices of expert and anti, None for none.

    Raises:
        RoleError: A base behind an API would run under two prompt formats.
    """
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
        if roles and isinstance(inner, RemoteCausalLM):
            raise RoleError(
                f"{name} is the base under prompt format {prompt_format!r}, and a base behind an API is asked under "
                f"its own alone, {roles[0].prompt_format!r}: load the base here, or name another model."
            )
        roles.append(RoleModel(name, inner, wrappers.get(id(inner)), adapter_name, prompt_format))
        return len(roles) - 1

    index_of("base", base, config.base_prompt)
    pair_roles: list[tuple[int, int | None]] = []
    for number, (expert, anti) in enumerate(pairs):
        suffix = "" if len(pairs) == 1 else f"_{number + 1}"
        expert_format, anti_format = config.prompt_formats(number)
        expert_index = index_of(f"expert{suffix}", expert, expert_format)
        anti_index = None if anti is None else index_of(f"anti{suffix}", anti, anti_format)
        pair_roles.append((expert_index, anti_index))
    return roles, pair_roles
