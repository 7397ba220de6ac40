"""The step that becomes a CUDA graph, run as it is: pinned slots, several cycles between two looks of the host.

Only the recording itself needs a GPU; it is what these tests leave out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proxytune import ProxyGenerator
from proxytune.hf.decoding.cycle import Cycle
from proxytune.hf.decoding.decoder import can_be_recorded
from proxytune.hf.decoding.ensemble import Ensemble
from proxytune.hf.decoding.rowstate import RowState
from proxytune.hf.decoding.stats import Stopwatch
from proxytune.options import GenerationOptions
from proxytune.sampling import Sampler
from proxytune.steering import Strengths
from tests import tiny
from tests.hf.decoding.rigs import FORMATS, agreeing, scripted, tokens

TEXTS = ["w10", "w11 w12 w13 w14 w15", "w20 w21 w22"]
PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
# Of a host that waits for the device, or of numbers that go to it: neither can be recorded.
HOST_CALLS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::equal"}


def static(generator: ProxyGenerator) -> ProxyGenerator:
    """Make a generator's loop run over pinned slots."""
    runtime = generator._runtime
    generator._runtime = replace(runtime, loop=replace(runtime.loop, is_static=True))
    return generator


@pytest.mark.parametrize("speculation", ["off", 1, 3])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "opt", "gemma2"])
def test_pinned_slots_change_nothing(name: str, speculation: Any) -> None:
    """Roles with prompts of their own, α per row, sampled, answers that outgrow the first slots: the same tokens."""
    options: dict[str, Any] = {"max_new_tokens": 90, "ignore_eos": True, "alpha": [0.5, 1.0, 0.0]}
    options |= {"temperature": 1.1, "top_p": 0.95, "seed": 4}
    plain = tiny.generator(name, speculation="off", **FORMATS)
    found = static(tiny.generator(name, speculation=speculation, **FORMATS))
    assert tokens(found.generate(TEXTS, **options)) == tokens(plain.generate(TEXTS, **options))


@pytest.mark.parametrize("speculation", ["off", 3])
def test_ends_between_two_looks(speculation: Any) -> None:
    """End-of-text, stop texts and limits fall anywhere in a burst: rows end where plain decoding ends them."""
    prompts = [tiny.prompt_ids(2 + index % 9, seed=index) for index in range(12)]
    settings: dict[str, Any] = {"eos_token_ids": [5, 6, 7, 8]}
    options: dict[str, Any] = {"max_new_tokens": 21, "stop": ["w9", "w30 "], "repetition_penalty": 1.2}
    plain = tiny.generator(speculation="off", **settings).generate(prompts, **options)
    found = static(tiny.generator(speculation=speculation, **settings)).generate(prompts, **options)
    assert {row.finish_reason for row in plain} == {"eos", "stop", "length"}
    for one, other in zip(found, plain, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)


def test_widths_that_change() -> None:
    """Bursts of different width in one answer."""
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 9}
    wanted = tokens(tiny.generator(speculation="off").generate(PROMPTS, **options))
    assert tokens(static(scripted(tiny.generator(), [1, 4, 2])).generate(PROMPTS, **options)) == wanted


def test_a_stream() -> None:
    """It looks after every cycle."""
    generator = static(agreeing(speculation=3))
    [done] = generator.generate(PROMPTS[:1], max_new_tokens=12, ignore_eos=True)
    assert "".join(generator.stream(PROMPTS[0], max_new_tokens=12, ignore_eos=True)) == done.text


def test_an_adapter_and_its_anti(folders: Mapping[str, Any]) -> None:
    """The pair pass runs over pinned slots too."""
    roles = [folders[name] for name in ("base", "lora", "anti")]
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    wanted = tokens(ProxyGenerator(*roles, speculation="off").generate(TEXTS, **options))
    for speculation in ("off", 2):
        found = static(ProxyGenerator(*roles, speculation=speculation))
        assert tokens(found.generate(TEXTS, **options)) == wanted


class NoHost(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or sends it numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or fail."""
        # Transformers' top-p writes a Python False into its mask, which on CUDA is a fill.
        is_fill = func.name().startswith("aten::lift_fresh") and args[0].dtype == torch.bool
        if func.name().split(".")[0] in HOST_CALLS and not is_fill:
            raise AssertionError(f"a step called {func.name()}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_nothing_in_a_step_waits_for_the_host(width: int, options: dict[str, Any]) -> None:
    """No value is read back, none is sent, and everything stays at its address."""
    model, device = tiny.generator().model, torch.device("cpu")
    checked = GenerationOptions(**options)
    strengths = Strengths.of_rows([(1.0,)] * 3)
    role_ids, stopwatch = [[ids] * 3 for ids in PROMPTS], Stopwatch(None)
    ensemble = Ensemble(model, role_ids, strengths, rule=model.rule, shared={}, stopwatch=stopwatch)
    sampler = Sampler(checked, [1, 2, 3], PROMPTS, vocab_size=tiny.VOCAB_SIZE, max_positions=40, device=device)
    state = RowState([50] * 3, [], device)
    sampler.prepare([0] * 3, 40)
    with torch.no_grad():
        state.take(sampler, ensemble.read_prompts(64), state.pending[:, :0])
        ensemble.pin(64)
        addresses = set()
        for _ in range(4):
            with NoHost():
                Cycle(ensemble, sampler, state).run(width, ())
            addresses.add((state.counts.data_ptr(), state.limits.data_ptr(), state.pending.data_ptr()))
    assert len(addresses) == 1
    assert int(state.counts.min()) >= 2


def test_that_the_refusal_refuses() -> None:
    """A read of a value, and a number sent, are noticed by what the test above uses."""
    for call in (lambda: int(torch.ones(1)), lambda: torch.tensor([1.0]), lambda: torch.ones(2).nonzero()):
        with NoHost(), pytest.raises(AssertionError, match="a step called"):
            call()


def test_on_a_cpu_nothing_is_recorded() -> None:
    """compile="auto" runs eagerly there."""
    generator = tiny.generator(compile="auto")
    assert not can_be_recorded(generator.model)
    assert not generator._runtime.loop.is_static
