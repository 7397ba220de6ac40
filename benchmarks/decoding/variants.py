"""The ways of decoding that are compared, each as one call: prompts and a number of tokens in, tokens and times out."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding.naive import Decoded, Drafting, lean_loop, naive_loop
from benchmarks.decoding.trios import Trio
from proxytune import ProxyGenerator, ProxyTuneError

Run = Callable[[list[list[int]], int], Decoded]

BASE, BASE_OURS, NAIVE, PLAIN, PAIR, SPECULATIVE, PAIR_SPECULATIVE = NAMES = (
    "base",
    "base_ours",
    "naive",
    "plain",
    "pair",
    "speculative",
    "pair_speculative",
)
# Only where they are asked for by name: the composite in transformers' own generate, and in vLLM's engine.
GENERATE, VLLM = EXTRA_NAMES = ("generate", "vllm")
ALONE = (BASE, BASE_OURS)
WITH_PAIR = (PAIR, PAIR_SPECULATIVE)
WITH_DRAFTS = (SPECULATIVE, PAIR_SPECULATIVE)


class VariantError(ProxyTuneError, ValueError):
    """A variant that is unknown, or that these models do not have."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How our own decoding is set up: `speculation` for the speculative variants, and `compile` for all."""

    speculation: Any = "auto"
    compile: Any = "auto"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of decoding: `run` gives tokens and times; `generator` is there where it may draft."""

    name: str
    run: Run
    generator: ProxyGenerator | None = None
    close: Callable[[], None] = lambda: None


def variants(trio: Trio, names: Sequence[str], engine: Engine) -> list[Variant]:
    """Return the variants of these names, in their own order; those with a pair are left out where there is none.

    Raises:
        VariantError: A name is unknown.
    """
    known = [*NAMES, *EXTRA_NAMES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise VariantError(f"variant {unknown[0]!r} is unknown: take some of {', '.join(known)}.")
    wanted = [name for name in NAMES if name in names and (trio.adapted is not None or name not in WITH_PAIR)]
    generators = _generators(trio, wanted, engine)
    found = []
    for name in wanted:
        if name == BASE:
            run = partial(_lean, trio)
        elif name == NAIVE:
            run = partial(_naive, trio)
        else:
            run = partial(decode, generators[name], alpha=0.0 if name == BASE_OURS else 1.0)
        generator = generators[name] if name in WITH_DRAFTS else None
        found.append(Variant(name=name, run=run, generator=generator))
    if GENERATE in names:
        found.append(Variant(name=GENERATE, run=partial(_generate, _new_generator(trio, "off", engine))))
    if VLLM in names:
        found.append(_vllm_variant(trio))
    return found


def _new_generator(trio: Trio, speculation: Any, engine: Engine) -> ProxyGenerator:
    return ProxyGenerator(*trio.models, tokenizer=trio.tokenizer, speculation=speculation, compile=engine.compile)


@torch.inference_mode()
def _generate(generator: ProxyGenerator, prompts: list[list[int]], count: int) -> Decoded:
    """Decode by the composite's `generate`, which is transformers' own; prompts are of one length."""
    ids = torch.tensor(prompts, device=generator.model.device)
    started = time.perf_counter()
    found = generator.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    seconds = time.perf_counter() - started
    return Decoded(token_ids=found[:, ids.shape[1] :].tolist(), seconds=seconds)


def _vllm_variant(trio: Trio) -> Variant:
    """Return the composite in an engine of vLLM, eager, that runs until the variant is closed.

    Raises:
        VariantError: vLLM is not installed.
    """
    from benchmarks.decoding.engines import CompositeEngine, engine_options, save_trio, set_up_environment

    if find_spec("vllm") is None:
        raise VariantError(f"variant {VLLM!r} needs vLLM, which is not installed: name the other variants.")
    set_up_environment()
    root = tempfile.TemporaryDirectory(prefix="proxytune-bench-")
    options = engine_options(is_eager=True, max_length=1024, max_rows=8, num_engines=1, device=trio.base.device)
    engine = CompositeEngine(save_trio(trio, Path(root.name)), options, trio.base.dtype)

    def close() -> None:
        engine.close()
        root.cleanup()

    return Variant(name=VLLM, run=lambda prompts, count: engine.decode(prompts, [count] * len(prompts)), close=close)


def _lean(trio: Trio, prompts: list[list[int]], count: int) -> Decoded:
    return lean_loop(trio.base, prompts, max_new_tokens=count)


def _naive(trio: Trio, prompts: list[list[int]], count: int) -> Decoded:
    pad = trio.tokenizer.pad_token_id or 0
    return naive_loop(trio.models, prompts, max_new_tokens=count, pad_token_id=pad)


def _generators(trio: Trio, names: Sequence[str], engine: Engine) -> Mapping[str, ProxyGenerator]:
    """Return the generators of our variants; the base alone is the plain one with α = 0, which runs no pair."""

    def new(expert: Any, anti: Any, speculation: Any) -> ProxyGenerator:
        return ProxyGenerator(
            trio.base, expert, anti, tokenizer=trio.tokenizer, speculation=speculation, compile=engine.compile
        )

    found: dict[str, ProxyGenerator] = {}
    if PLAIN in names or BASE_OURS in names:
        found[PLAIN] = found[BASE_OURS] = new(trio.expert, trio.anti, "off")
    if SPECULATIVE in names:
        found[SPECULATIVE] = new(trio.expert, trio.anti, engine.speculation)
    for name, speculation in ((PAIR, "off"), (PAIR_SPECULATIVE, engine.speculation)):
        if name in names and trio.adapted is not None:
            found[name] = new(trio.adapted, trio.adapted.get_base_model(), speculation)
    return found


def decode(generator: ProxyGenerator, prompts: list[list[int]], count: int, *, alpha: float = 1.0) -> Decoded:
    """Decode greedily in one batch, to `count` tokens in every row whatever comes."""
    started = time.perf_counter()
    done = generator.generate(prompts, max_new_tokens=count, batch_size=len(prompts), ignore_eos=True, alpha=alpha)
    seconds = time.perf_counter() - started
    return Decoded(
        token_ids=[list(completion.token_ids) for completion in done],
        seconds=seconds,
        first_token_seconds=done[0].timing.first_token_seconds,
    )


def drafting(generator: ProxyGenerator, prompts: list[list[int]], count: int) -> Drafting | None:
    """Return how drafts fare, from a run of its own, since counting them costs time; None where nothing was drafted."""
    done = generator.generate(prompts, max_new_tokens=count, batch_size=len(prompts), ignore_eos=True, stats=True)
    stats = done[0].timing.stats
    if stats is None or not stats.num_drafted:
        return None
    # A cycle gives the drafts that stood and one token more, so what stood is known from the tokens.
    return Drafting(
        num_drafted=stats.num_drafted,
        tokens_per_cycle=stats.tokens_per_cycle,
        acceptance=min(1.0, (stats.tokens_per_cycle - 1) / stats.num_drafted),
        acceptance_by_place=stats.acceptance,
    )
