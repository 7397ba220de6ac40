"""Forwards over static caches, replayed: on a GPU as CUDA graphs, here by running them again on the graph's tensors.

Only the capture itself needs a GPU; the tests marked `gpu` run it.
"""

import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proxytune import ProxyGenerator
from proxytune.errors import ProxyTuneWarning
from proxytune.hf.decoding import cuda_graph, decoder
from proxytune.hf.decoding.cuda_graph import CapturedForward, CudaGraphs, Forward, StaticCache
from proxytune.hf.decoding.runners import RoleRunner
from tests import tiny
from tests.hf.decoding.rigs import FORMATS, scripted, tokens

TEXTS = ["w10", "w11 w12 w13 w14 w15", "w20 w21 w22"]
# Of a host that waits for the device, or of numbers that go to it: neither can be captured.
HOST_CALLS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::equal"}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class NoHost(TorchDispatchMode):
    """Refuses operations that make the host wait for the device, or send it numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or fail."""
        if func.name().split(".")[0] in HOST_CALLS:
            raise AssertionError(f"a captured forward called {func.name()}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Replay on the CPU by running a forward again on the same tensors; count captures and replays."""
    counter: Counter[str] = Counter()

    def capture(forward: Forward, inputs: tuple[torch.Tensor, torch.Tensor], entry: StaticCache) -> CapturedForward:
        counter["captured"] += 1
        with NoHost():
            output = forward(*inputs)

        def replay() -> None:
            counter["replayed"] += 1
            output.copy_(forward(*inputs))

        return CapturedForward(replay, inputs, output)

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(CudaGraphs, "supports", lambda graphs, *_: not graphs.is_off)
    monkeypatch.setattr(decoder, "uses_graphs", lambda _, settings: settings.compile == "auto")
    return counter


@pytest.mark.parametrize("speculation", ["off", 3])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_replays_change_nothing(name: str, speculation: Any, counts: Counter[str]) -> None:
    """Every architecture, roles with prompts and rows with α of their own, sampled: the tokens of eager forwards."""
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True, "alpha": [0.5, 1.0, 0.0]}
    options |= {"temperature": 1.1, "top_p": 0.95, "seed": 4}
    plain = tiny.generator(name, speculation="off", compile="off", **FORMATS)
    found = tiny.generator(name, speculation=speculation, **FORMATS)
    assert tokens(found.generate(TEXTS, **options)) == tokens(plain.generate(TEXTS, **options))
    assert counts["replayed"] > 20


def test_rows_that_leave_and_answers_that_grow(counts: Counter[str]) -> None:
    """End-of-text, stop texts, changing numbers of drafts, more columns than a first graph reads: the eager tokens."""
    prompts = [tiny.prompt_ids(2 + index % 9, seed=index) for index in range(12)]
    settings: dict[str, Any] = {"eos_token_ids": [5, 6, 7, 8]}
    options: dict[str, Any] = {"max_new_tokens": 21, "stop": ["w9", "w30 "], "repetition_penalty": 1.2}
    plain = tiny.generator(speculation="off", compile="off", **settings).generate(prompts, **options)
    assert {row.finish_reason for row in plain} == {"eos", "stop", "length"}
    for drafts in ([0], [0, 3, 1]):
        found = scripted(tiny.generator(**settings), drafts).generate(prompts, **options)
        assert [(row.token_ids, row.text) for row in found] == [(row.token_ids, row.text) for row in plain]
    trio = tiny.trio(context=700)
    long: dict[str, Any] = {"max_new_tokens": 600, "ignore_eos": True}
    eager, graphed = (
        ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), compile=way, speculation="off")
        for way in ("off", "auto")
    )
    assert tokens(graphed.generate(TEXTS[:1], **long)) == tokens(eager.generate(TEXTS[:1], **long))


def test_the_next_batch_finds_the_graphs(counts: Counter[str]) -> None:
    """A batch of the same size captures nothing again; weights that have moved are captured anew."""
    trio = [tiny.new_model("llama", seed) for seed in range(3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off")
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    for seed in range(3):
        generator.generate([tiny.prompt_ids(5 + seed, seed=seed)], **options)
        assert counts["captured"] == 3
    with torch.no_grad():
        weight = trio[1].lm_head.weight
        weight.data = torch.randn(weight.shape)
    found = generator.generate([tiny.prompt_ids(5)], **options)
    fresh = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), compile="off").generate(
        [tiny.prompt_ids(5)], **options
    )
    assert counts["captured"] == 4
    assert tokens(found) == tokens(fresh)


def test_an_adapter_and_its_anti(folders: Mapping[str, Any], counts: Counter[str]) -> None:
    """The pair's forward is captured for both, and for the expert alone."""
    roles = [folders[name] for name in ("base", "lora", "anti")]
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    expected = tokens(ProxyGenerator(*roles, speculation="off", compile="off").generate(TEXTS, **options))
    for speculation in ("off", 2):
        found = ProxyGenerator(*roles, speculation=speculation)
        assert tokens(found.generate(TEXTS, **options)) == expected
    assert counts["replayed"] > 20


def test_two_threads_have_caches_of_their_own(counts: Counter[str]) -> None:
    """Base alone and steered at once, as the playground decodes: each gives its own tokens."""
    generator = tiny.generator(speculation="off")
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    expected = {alpha: tokens(generator.generate(TEXTS[:1], alpha=alpha, **options)) for alpha in (0.0, 1.0)}
    found: list[tuple[float, Any]] = []

    def decode(alpha: float) -> None:
        found.extend((alpha, tokens(generator.generate(TEXTS[:1], alpha=alpha, **options))) for _ in range(3))

    threads = [threading.Thread(target=decode, args=(alpha,)) for alpha in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(ids == expected[alpha] for alpha, ids in found)


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_a_capture_that_fails_is_the_last(fault: str, counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, the eager tokens, and no further attempt by this generator."""
    original = cuda_graph.capture

    def capture(forward: Forward, inputs: Any, entry: StaticCache) -> CapturedForward:
        if fault == "raises":
            counts["captured"] += 1
            raise RuntimeError("operation not permitted when stream is capturing")
        captured = original(forward, inputs, entry)
        return CapturedForward(lambda: None, captured.inputs, torch.zeros_like(captured.output))

    monkeypatch.setattr(cuda_graph, "capture", capture)
    generator = tiny.generator(speculation="off")
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    with pytest.warns(ProxyTuneWarning, match="goes on without CUDA graphs"):
        found = tokens(generator.generate(TEXTS, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.generate(TEXTS, **options)
    assert counts["captured"] == 1
    assert found == tokens(tiny.generator(speculation="off", compile="off").generate(TEXTS, **options))


def test_warmup_steps_are_told_apart(counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy hears of the eager and the capturing step of a shape, and of no replay."""
    generator = tiny.generator(speculation="off")
    policy = generator._runtime.loop.policy
    heard: list[bool] = []
    monkeypatch.setattr(policy, "observe", lambda *args, is_warmup: heard.append(is_warmup))
    generator.generate(TEXTS[:1], max_new_tokens=8, ignore_eos=True)
    assert heard == [True, True, *[False] * 5]


def test_nothing_is_captured_on_a_cpu_or_with_hooks() -> None:
    """A capture leaves Python out, so modules that are watched run eagerly; on a CPU there is none."""
    model = tiny.new_model("llama", 1)
    graphs = CudaGraphs()
    assert not graphs.supports(model, torch.device("cpu"))
    assert graphs.supports(model, torch.device("cuda"))
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not graphs.supports(model, torch.device("cuda"))


def test_the_refusal_of_host_calls_refuses() -> None:
    """A read of a value, and a number sent, are noticed by the mode that captures run under here."""
    for call in (lambda: int(torch.ones(1)), lambda: torch.tensor([1.0]), lambda: torch.ones(2).nonzero()):
        with NoHost(), pytest.raises(AssertionError, match="a captured forward called"):
            call()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("speculation", ["off", 3])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_graphs_on_a_gpu(name: str, speculation: Any) -> None:
    """Captured forwards give the eager tokens, float32."""
    trio = [model.to("cuda") for model in (tiny.new_model(name, seed) for seed in range(3))]
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
    eager, graphed = (
        ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), compile=way, speculation=drafts)
        for way, drafts in (("off", "off"), ("auto", speculation))
    )
    assert tokens(graphed.generate(TEXTS, **options)) == tokens(eager.generate(TEXTS, **options))
    assert not graphed._runtime.loop.graphs.is_off


@pytest.mark.gpu
@needs_gpu
def test_two_threads_on_a_gpu() -> None:
    """Base alone and steered at once, both capturing: each gives its own tokens."""
    trio = [model.to("cuda") for model in (tiny.new_model("llama", seed) for seed in range(3))]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off")
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
    expected = {alpha: tokens(generator.generate(TEXTS[:1], alpha=alpha, **options)) for alpha in (0.0, 1.0)}
    found: list[tuple[float, Any]] = []

    def decode(alpha: float) -> None:
        found.extend((alpha, tokens(generator.generate(TEXTS[:1], alpha=alpha, **options))) for _ in range(5))

    threads = [threading.Thread(target=decode, args=(alpha,)) for alpha in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert all(ids == expected[alpha] for alpha, ids in found)


@pytest.mark.gpu
@needs_gpu
def test_a_failed_capture_on_a_gpu_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host synchronisation inside a capture: eager tokens, the old stream, and an allocator that still works."""
    trio = [model.to("cuda") for model in (tiny.new_model("llama", seed) for seed in range(3))]
    eager, graphed = (
        ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation="off", compile=way)
        for way in ("off", "auto")
    )
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    expected = tokens(eager.generate(TEXTS, **options))
    original = RoleRunner._logits

    def logits(runner: RoleRunner, *args: Any) -> torch.Tensor:
        found = original(runner, *args)
        float(found.sum())
        return found

    monkeypatch.setattr(RoleRunner, "_logits", logits)
    stream = torch.cuda.current_stream()
    with pytest.warns(ProxyTuneWarning, match="goes on without CUDA graphs"):
        assert tokens(graphed.generate(TEXTS, **options)) == expected
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert torch.rand(2, device="cuda").shape == (2,)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_a_pair_on_the_second_gpu() -> None:
    """Expert and anti on cuda:1, automatic drafts: the tokens of one device."""
    trio = [tiny.new_model("llama", seed) for seed in range(3)]
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    apart = [model.to(device) for model, device in zip(trio, ("cuda:0", "cuda:1", "cuda:1"), strict=True)]
    found = ProxyGenerator(*apart, tokenizer=tiny.word_tokenizer()).generate(TEXTS, **options)
    together = [model.to("cuda:0") for model in trio]
    expected = ProxyGenerator(*together, tokenizer=tiny.word_tokenizer(), compile="off").generate(TEXTS, **options)
    assert tokens(found) == tokens(expected)
