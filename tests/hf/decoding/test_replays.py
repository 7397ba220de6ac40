"""Recorded forwards in the loop, and the workspaces that batches leave to each other."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from proxytune import ProxyGenerator
from proxytune.hf.decoding import replays
from proxytune.hf.decoding import workspace as workspaces
from proxytune.hf.decoding.operators import UnrecordableError
from proxytune.hf.decoding.recording import Recording, record
from tests import tiny
from tests.hf.decoding.rigs import FORMATS, scripted, tokens

TEXTS = ["w10", "w11 w12 w13 w14 w15", "w20 w21 w22"]
LONG: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count recordings and replays."""
    counts: Counter[str] = Counter()

    def counting(*args: Any) -> tuple[Recording, torch.Tensor]:
        counts["recorded"] += 1
        return record(*args)

    def replay(recording: Recording) -> torch.Tensor:
        counts["replayed"] += 1
        return original(recording)

    original = Recording.replay
    monkeypatch.setattr(replays, "record", counting)
    monkeypatch.setattr(Recording, "replay", replay)
    return counts


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt", "neox", "gemma2"])
def test_replays_change_nothing(name: str, counted: Counter[str]) -> None:
    """Every architecture, ragged rows and widths: the tokens of forwards that run as they are, batch after batch."""
    trio = tiny.trio(name)
    settings: dict[str, Any] = {"tokenizer": tiny.word_tokenizer(), **FORMATS}
    wanted = ProxyGenerator(*trio, compile="off", speculation="off", **settings).generate(TEXTS, **LONG)
    assert not counted
    plain = ProxyGenerator(*trio, speculation="off", **settings)
    drafting = scripted(ProxyGenerator(*trio, **settings), [3, 1, 3, 2, 3])
    for _ in range(2):
        assert tokens(plain.generate(TEXTS, **LONG)) == tokens(wanted)
        assert tokens(drafting.generate(TEXTS, **LONG)) == tokens(wanted)
    assert counted["replayed"] > 60


def test_the_next_batch_finds_the_recordings(counted: Counter[str]) -> None:
    """A batch of the same size records nothing again; its prompts may be others."""
    generator = tiny.generator(speculation="off")
    fresh = tiny.generator(speculation="off", compile="off")
    counts = []
    for seed in range(3):
        prompts = [tiny.prompt_ids(5 + seed, seed=seed)]
        assert tokens(generator.generate(prompts, **LONG)) == tokens(fresh.generate(prompts, **LONG))
        counts.append(counted["recorded"])
    assert counts[0] == counts[2] == 3


def test_weights_that_change_between_batches(counted: Counter[str]) -> None:
    """In place or moved, also where a norm works on the weight plus one: the next batch reads what is there."""
    trio = [tiny.new_model("gemma2", seed) for seed in range(3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off")
    prompts = [tiny.prompt_ids(5, seed=1)]
    seen = [tokens(generator.generate(prompts, **LONG))]
    with torch.no_grad():
        for number, model in enumerate(trio):
            for weight in model.parameters():
                changed = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1
                if number == 2:
                    weight.data = changed
                else:
                    weight.data.copy_(changed)
        seen.append(tokens(generator.generate(prompts, **LONG)))
        wanted = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), compile="off").generate(prompts, **LONG)
    assert seen[0] != seen[1] == tokens(wanted)


def test_hooks_are_called(counted: Counter[str]) -> None:
    """A model that somebody watches runs as it is, also when the hook comes after a first batch; then replays go on."""
    trio = [tiny.new_model("llama", seed) for seed in range(3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off")
    prompts = [tiny.prompt_ids(5, seed=1)]
    generator.generate(prompts, **LONG)
    before = counted["replayed"]
    calls: list[int] = []
    layer = trio[1].model.layers[0]
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        calls.clear()
        handle = register(lambda *_: calls.append(1))
        generator.generate(prompts, **LONG)
        handle.remove()
        assert len(calls) == LONG["max_new_tokens"]
    assert counted["replayed"] == before
    generator.generate(prompts, **LONG)
    assert counted["replayed"] > before


def test_hooks_on_every_module(counted: Counter[str]) -> None:
    """Those that torch calls for all modules count, too."""
    generator = tiny.generator(speculation="off")
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        generator.generate([tiny.prompt_ids(5)], **LONG)
    assert not counted


def test_modes_of_torch_between_batches() -> None:
    """What was recorded in inference mode, or with autocast, is not replayed without, nor the other way round."""
    generator, fresh = tiny.generator(speculation="off"), tiny.generator(speculation="off", compile="off")
    prompts = [tiny.prompt_ids(5)]
    wanted = tokens(fresh.generate(prompts, **LONG))
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert tokens(generator.generate(prompts, **LONG)) == wanted
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tokens(fresh.generate(prompts, **LONG))
        assert tokens(generator.generate(prompts, **LONG)) == rough
    assert tokens(generator.generate(prompts, **LONG)) == wanted


def test_many_tokens_run_as_they_are(counted: Counter[str]) -> None:
    """Seventeen tokens in a forward are not recorded: Python's share is small, and the memory would not be."""
    prompts = [tiny.prompt_ids(5, seed=seed) for seed in range(17)]
    tiny.generator(speculation="off").generate(prompts, batch_size=17, **LONG)
    assert not counted


def test_an_unrecordable_forward_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried once per cache, and the tokens come all the same."""
    wanted = tiny.generator(speculation="off", compile="off").generate([tiny.prompt_ids(5)], **LONG)
    tried: list[int] = []

    def refuse(*_: Any) -> None:
        tried.append(1)
        raise UnrecordableError("it rolls dice.")

    monkeypatch.setattr(replays, "record", refuse)
    generator = tiny.generator(speculation="off")
    for _ in range(2):
        assert tokens(generator.generate([tiny.prompt_ids(5)], **LONG)) == tokens(wanted)
    assert len(tried) == 3


def test_broken_numbers_do_not_outlive_their_batch() -> None:
    """A cache that held NaN holds zeros when it is used again."""
    trio = [tiny.new_model("llama", seed) for seed in range(3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off")
    wanted = tokens(generator.generate([tiny.prompt_ids(5)], **LONG))
    [(_, workspace), *_] = generator._runtime.loop.workspaces._free.values()
    for layer in workspace.cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    assert tokens(generator.generate([tiny.prompt_ids(5)], **LONG)) == wanted


def test_large_caches_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond an eighth of the weights, and 64 MiB, a cache goes with its batch; what was used last stays longest."""
    generator = tiny.generator(speculation="off")
    free = generator._runtime.loop.workspaces._free
    base = id(generator._runtime.loop.model.roles[0].model)

    def kept(*batches: int) -> list[int]:
        for rows in batches:
            prompts = [tiny.prompt_ids(5, seed=seed) for seed in range(rows)]
            generator.generate(prompts, batch_size=rows, **LONG)
        return [rows for model, rows in free if model == base]

    assert kept(1, 3, 2) == [1, 3, 2]
    monkeypatch.setattr(workspaces, "_MOST_BYTES", sum(free[base, rows][1].cache.num_bytes for rows in (1, 2)))
    monkeypatch.setattr(workspaces, "_MOST_OF_WEIGHTS", 0.0)
    assert kept(1) == [2, 1]
    assert kept(3) == [3]
    monkeypatch.setattr(workspaces, "_MOST_BYTES", 0)
    assert kept(3, 1) == []


def _adapted(**options: Any) -> Any:
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options)
    torch.manual_seed(0)
    return get_peft_model(tiny.new_model("llama", 1), config).eval()


def _by_adapter(expert: Any, compile: Any) -> ProxyGenerator:
    trio = tiny.model("llama", 0), expert, expert.get_base_model()
    return ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off", compile=compile)


def test_a_pair_pass_keeps_its_recordings(counted: Counter[str]) -> None:
    """It holds one adapter for good, so the next batch finds what base and pair have recorded."""
    expert = _adapted()
    prompts = [tiny.prompt_ids(5, seed=1)]
    wanted = tokens(_by_adapter(expert, "off").generate(prompts, **LONG))
    pair = _by_adapter(expert, "auto")
    for _ in range(3):
        assert tokens(pair.generate(prompts, **LONG)) == wanted
        assert counted["recorded"] == 2


def test_an_adapter_that_changes_between_batches(counted: Counter[str]) -> None:
    """Through peft's own layers an adapter can be scaled behind the weights: nothing of it is kept."""
    expert = _adapted(use_dora=True)
    prompts = [tiny.prompt_ids(5, seed=1)]
    generator = _by_adapter(expert, "auto")
    found = []
    for scale in (1.0, 40.0):
        for module in expert.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] = scale
        found.append(tokens(generator.generate(prompts, **LONG)))
        assert found[-1] == tokens(_by_adapter(expert, "off").generate(prompts, **LONG))
    assert found[0] != found[1]
    assert counted["recorded"] == 1 + 2 + 2
