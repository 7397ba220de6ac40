"""Grouped attention: sdpa's results without a copy of the keys."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from proxytune.hf.decoding import attention, runners
from proxytune.hf.decoding.attention import (
    FULL,
    GROUPED,
    SLIDING,
    LayerTypes,
    causal_mask,
    group_queries,
    grouped_attention,
)
from tests import tiny


@pytest.mark.parametrize("length", [1, 4, 40])
@pytest.mark.parametrize("key_heads", [1, 2, 8])
def test_it_equals_sdpa(length: int, key_heads: int) -> None:
    """For one query, several, and a prompt; with one key head for all, some, and one each; rows of different length."""
    draws = torch.Generator().manual_seed(length)
    query = torch.randn(2, 8, length, 16, generator=draws)
    buffer = torch.randn(2, 2, 64, key_heads, 16, generator=draws)
    key, value = (part[:, :60].transpose(1, 2) for part in buffer)
    positions = torch.tensor([[5], [17]]) + torch.arange(length)
    mask = causal_mask(positions, 60, torch.float32)
    module = SimpleNamespace(num_key_value_groups=8 // key_heads, is_causal=True)
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-6)


def test_no_copy_of_the_keys() -> None:
    """For one query the largest tensor that is made is smaller than the keys of one head."""
    key = torch.randn(1, 4096, 2, 8).transpose(1, 2)
    query, mask = torch.randn(1, 8, 1, 8), torch.zeros(1, 1, 1, 4096)
    with torch.profiler.profile(profile_memory=True) as profile:
        grouped_attention(SimpleNamespace(), query, key, key, mask)
    assert max(event.cpu_memory_usage for event in profile.events()) < 4096 * 8 * 4


def test_only_models_with_shared_key_heads_change() -> None:
    """Qwen2's queries share key heads, GPT-2's do not; a model that was told to attend eagerly keeps to it."""
    qwen, gpt, eager = (copy.deepcopy(tiny.new_model(name, 1)) for name in ("qwen2", "gpt2", "llama"))
    eager.set_attn_implementation("eager")
    ids = torch.tensor([tiny.prompt_ids(9)])
    with torch.no_grad():
        wanted = qwen(ids).logits
        for model in (qwen, gpt, eager):
            group_queries(model)
        assert torch.allclose(qwen(ids).logits, wanted, atol=1e-5)
    assert [model.config._attn_implementation for model in (qwen, gpt, eager)] == [GROUPED, "sdpa", "eager"]


def test_a_mask_by_hand() -> None:
    """A query sees its own position and those before; a window of two sees one before."""
    seen = causal_mask(torch.tensor([[2, 3], [0, 1]]), 4, torch.float32) == 0
    assert seen[:, 0].int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]
    narrow = causal_mask(torch.tensor([[2, 3]]), 4, torch.float32, window=2) == 0
    assert narrow[0, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("name", "types", "is_mixed"),
    [
        ("llama", {FULL}, False),
        ("mistral", {SLIDING}, False),
        ("gemma2", {FULL, SLIDING}, True),
        ("gpt2", {FULL}, False),
    ],
)
def test_types_of_layers(name: str, types: set[str], is_mixed: bool) -> None:
    """They are read from the config: one mask for all layers, or one per type."""
    found = LayerTypes.of(tiny.model(name, 1).config)
    assert (set(found.types), found.is_mixed) == (types, is_mixed)
    masks = found.masks(torch.tensor([[3]]), 8, torch.float32)
    assert (set(masks) == types) if is_mixed else (masks.shape == (1, 1, 1, 8))


def by_lengths(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Return what flash-attn's documentation says of its kernel: causal, aligned at each row's last key."""
    assert causal
    output = torch.empty_like(query)
    groups = query.shape[2] // keys.shape[2]
    for row, length in enumerate(cache_seqlens.tolist()):
        for index in range(query.shape[1]):
            last = length - query.shape[1] + index
            first = max(0, last - window_size[0]) if window_size[0] >= 0 else 0
            for head in range(query.shape[2]):
                seen = slice(first, last + 1)
                weights = (keys[row, seen, head // groups] @ query[row, index, head] * softmax_scale).softmax(-1)
                output[row, index, head] = weights @ values[row, seen, head // groups]
    return output


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("speculation", ["off", 3])
def test_attention_by_lengths_gives_the_masked_tokens(
    name: str, speculation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows, drafts and a window, through a kernel that takes lengths: the tokens of masks."""
    prompts = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 14)]
    options: dict[str, Any] = {"max_new_tokens": 14, "ignore_eos": True}
    expected = tiny.generator(name, speculation="off").generate(prompts, **options)
    monkeypatch.setattr(attention, "_flash_kernel", lambda: by_lengths)
    monkeypatch.setattr(runners, "takes_lengths", lambda *_: True)
    monkeypatch.setattr(attention, "causal_mask", None)
    found = tiny.generator(name, speculation=speculation).generate(prompts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]


def test_a_kernel_is_used_where_its_results_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that aligns queries otherwise, or forgets the window, is not taken; on a CPU none is asked for."""

    def other(*args: torch.Tensor, cache_seqlens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return by_lengths(*args, cache_seqlens=cache_seqlens - 1, **kwargs)

    def forgetful(*args: torch.Tensor, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
        return by_lengths(*args, window_size=(-1, -1), **kwargs)

    cpu = torch.device("cpu")
    for kernel, is_right in ((by_lengths, True), (other, False), (forgetful, False)):
        monkeypatch.setattr(attention, "_flash_kernel", lambda kernel=kernel: kernel)
        attention._is_right.cache_clear()
        assert attention._is_right(cpu, torch.float32) is is_right
    attention._is_right.cache_clear()
    assert not attention.takes_lengths(cpu, torch.bfloat16)
