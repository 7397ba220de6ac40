"""The functional forward of Llama-shaped decoders: the logits of transformers' own, and no forward where it differs."""

from typing import Any

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model

from proxytune.hf.decoding import functional_decoder
from proxytune.hf.decoding.attention import causal_mask
from proxytune.hf.decoding.functional_decoder import FAMILIES, FunctionalDecoder, RotaryTable
from proxytune.hf.decoding.kv_cache import SlotCache, SlotMapping, flat_slots
from tests import tiny

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


class Driver:
    """Runs tokens through a functional decoder over a cache of its own."""

    def __init__(self, model: Any, num_rows: int) -> None:
        decoder = FunctionalDecoder.of(model)
        assert decoder is not None
        self.decoder = decoder
        self.window = getattr(model.config, "sliding_window", None)
        self.cache = SlotCache(len(decoder.layers), num_rows, 64)
        self.table = RotaryTable(decoder.rotary, model.get_input_embeddings().weight)
        self.table.require(64)

    def logits(self, token_ids: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """Return logits `[B, T, V]` for tokens of rows that begin at `starts`, by slots and a mask."""
        positions = torch.tensor(starts)[:, None] + torch.arange(token_ids.shape[1])
        kv_len = max(starts) + token_ids.shape[1]
        slots = flat_slots(positions, self.cache.capacity)
        self.cache.set_slot_mapping(SlotMapping(rows=slice(0, len(starts)), kv_len=kv_len, slots=slots))
        mask = causal_mask(positions, kv_len, torch.float32, self.window)
        return self.decoder.head(self.decoder.hidden(token_ids, self.table.at(positions), self.cache, mask))


@pytest.mark.parametrize("name", sorted(FAMILIES))
@torch.no_grad()
def test_logits_of_a_prompt_and_of_ragged_steps(name: str) -> None:
    """A prompt at once, then one token and then three, from another position in each row: transformers' logits."""
    model, draws = tiny.model(name, 1), torch.Generator().manual_seed(3)
    rows = torch.randint(4, tiny.VOCAB_SIZE, (2, 12), generator=draws)
    expected = model(rows).logits
    driver, lengths = Driver(model, 2), [5, 8]
    driver.cache.set_slot_mapping(SlotMapping(rows=slice(0, 2), kv_len=8, start=0))
    prompt = driver.logits(rows[:, :8], [0, 0])
    torch.testing.assert_close(prompt, expected[:, :8], atol=2e-5, rtol=1e-5)
    for width in (1, 3):
        tokens = torch.stack([row[length : length + width] for row, length in zip(rows, lengths, strict=True)])
        found = driver.logits(tokens, lengths)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row], expected[row, length : length + width], atol=2e-5, rtol=1e-5)
        lengths = [length + width for length in lengths]


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": LLAMA3_ROPE},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"head_dim": 16},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
@torch.no_grad()
def test_variants_of_llama(settings: dict[str, Any]) -> None:
    """Rotary scaling, biases, tied heads, another activation, other heads: transformers' logits."""
    model = tiny.new_model("llama", 2, **settings)
    rows = torch.tensor([tiny.prompt_ids(20, seed=1), tiny.prompt_ids(20, seed=2)])
    torch.testing.assert_close(Driver(model, 2).logits(rows, [0, 0]), model(rows).logits, atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_adapters_on_linear_layers_act() -> None:
    """LoRA with dropout and IA3 run as peft's own modules do."""
    for config in (
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.3),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    ):
        peft_model = get_peft_model(tiny.new_model("llama", 1), config).eval()
        rows = torch.tensor([tiny.prompt_ids(9)])
        found = Driver(peft_model.get_base_model(), 1).logits(rows, [0])
        torch.testing.assert_close(found, peft_model(rows).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 4, 64, 65])
def test_large_weights_give_the_same_product(num_rows: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that goes through oneDNN for 4 to 64 rows: torch's own product up to rounding, in two or three axes."""
    monkeypatch.setattr(functional_decoder, "_LARGE_WEIGHT", 1000)
    layer = torch.nn.Linear(48, 96, bias=has_bias)
    operation = functional_decoder._linear(layer)
    states = torch.randn(num_rows, 48)
    with torch.no_grad():
        torch.testing.assert_close(operation(states), layer(states), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(operation(states[:, None]), layer(states[:, None]), atol=1e-5, rtol=1e-5)


def test_other_modules_are_left_to_transformers() -> None:
    """A hook on a layer, a wrapped norm, another family, a hook on all modules: no functional forward."""
    hooked, wrapped = tiny.new_model("llama", 1), tiny.new_model("llama", 1)
    assert FunctionalDecoder.of(hooked) is not None
    handle = hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert FunctionalDecoder.of(hooked) is None
    handle.remove()
    assert FunctionalDecoder.of(hooked) is not None
    tuned = get_peft_model(wrapped, LNTuningConfig(target_modules=["input_layernorm"]))
    assert FunctionalDecoder.of(tuned.get_base_model()) is None
    assert FunctionalDecoder.of(tiny.model("gpt2", 1)) is None
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert FunctionalDecoder.of(hooked) is None


def test_weights_that_change_between_batches_are_read() -> None:
    """In place or replaced: the next batch's tokens are those of the new weights."""
    trio = [tiny.new_model("llama", seed) for seed in range(3)]
    generator = tiny.ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    before = generator.generate([tiny.prompt_ids(5)], max_new_tokens=20, ignore_eos=True)[0].token_ids
    with torch.no_grad():
        for number, model in enumerate(trio):
            for weight in model.parameters():
                changed = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.3
                if number == 2:
                    weight.data = changed
                else:
                    weight.copy_(changed)
    after = generator.generate([tiny.prompt_ids(5)], max_new_tokens=20, ignore_eos=True)[0].token_ids
    fresh = tiny.ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    assert before != after == fresh.generate([tiny.prompt_ids(5)], max_new_tokens=20, ignore_eos=True)[0].token_ids
