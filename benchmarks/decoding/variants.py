"""Variants: the ways of decoding that are compared, each a call from requests to tokens and seconds.

`base` is a lean eager loop, `base_ours` our loop at α = 0, `naive` three models as the published code has them, `pair`
expert and anti in one pass, `generate` transformers' own; `vllm…` are engines, `remote…` a base behind an API.
`speculative:4` and `remote:4` make four drafts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.decoding.naive import Decoded, Statistics, lean_loop, naive_batches
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.workloads import Requests
from proxytune import Completion, ProxyGenerator, ProxyTuneError

BASE, BASE_OURS, NAIVE, PLAIN = "base", "base_ours", "naive", "plain"
NAMES = (BASE, BASE_OURS, NAIVE, PLAIN, "pair", "speculative", "pair_speculative")
GENERATE = "generate"
VLLM_NAMES = ("vllm_base", "vllm", "vllm_base_compiled", "vllm_compiled")
REMOTE = "remote"


class VariantError(ProxyTuneError, ValueError):
    """A variant that is unknown, or that these models do not have."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of decoding.

    Attributes:
        name: As tables have it.
        run: Requests to tokens and seconds.
        reads: Models whose weights a token reads; `pair` is the trio with the expert as an adapter over the anti.
        reference: Name of the base alone under the same conditions.
        tokens_of: Variants of one value must decode the same tokens; `base` and `trio` have the naive loop's.
        takes_ragged: True if rows may differ in length.
        inspect: The run with statistics, which cost time; None where there are none.
        close: Releases what the variant holds.
    """

    name: str
    run: Callable[[Requests], Decoded]
    reads: Literal["base", "trio", "pair"] = "trio"
    reference: str = BASE
    tokens_of: str = "trio"
    takes_ragged: bool = False
    inspect: Callable[[Requests], Statistics] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the variants.

    Attributes:
        speculation: Drafts of the speculative variants that do not name a number.
        compile: As in ProxyGenerator.
        max_len: Tokens of the longest row, for engines.
        max_rows: Most rows at once, for engines.
        remote: Settings of the base behind an API; None for a server on this machine.
        verification: Way its drafts are checked.
    """

    speculation: Any = "auto"
    compile: Any = "auto"
    max_len: int = 1024
    max_rows: int = 8
    remote: Any = None
    verification: str = "auto"


def close_all(variants: Sequence[Variant]) -> None:
    """Release what variants hold."""
    for variant in reversed(variants):
        variant.close()


def local_variant(name: str, trio: Trio, options: Options) -> Variant:
    """Return a variant that runs in this process, by its name."""
    match plain_name(name):
        case "base":
            return _lean(trio)
        case "naive":
            run = partial(naive_batches, trio.models, pad_token_id=trio.tokenizer.pad_token_id or 0)
            return Variant(name=name, run=run, takes_ragged=True)
        case "generate":
            return _generate(trio, options)
    return _ours(name, trio, options)


def plain_name(name: str) -> str:
    """Return a variant's name without its number of drafts and of log-probabilities, as in `remote@20:4`."""
    return name.partition(":")[0].partition("@")[0]


def drafts_of(name: str, default: Any) -> Any:
    """Return the number of drafts in a variant's name, or the default.

    >>> drafts_of("speculative:4", "auto"), drafts_of("plain", "off")
    (4, 'off')
    """
    text = name.partition(":")[2]
    return default if not text else int(text) if text.isdecimal() else text


def _lean(trio: Trio) -> Variant:
    def run(requests: Requests) -> Decoded:
        batches = requests.batches()
        done = [lean_loop(trio.base, batch.prompts, max_new_tokens=batch.counts[0]) for batch in batches]
        rows = [row for part in done for row in part.token_ids]
        first = done[0].first_token_seconds if len(done) == 1 else None
        return Decoded(token_ids=rows, seconds=sum(part.seconds for part in done), first_token_seconds=first)

    return Variant(name=BASE, run=run, reads="base", tokens_of="base")


def _ours(name: str, trio: Trio, options: Options) -> Variant:
    is_pair, has_drafts, alpha = name.startswith("pair"), "speculative" in name, 0.0 if name == BASE_OURS else 1.0
    expert, anti = (trio.adapted, trio.adapted.get_base_model()) if is_pair and trio.adapted else trio.models[1:]
    speculation = drafts_of(name, options.speculation if has_drafts else "off")
    generator = ProxyGenerator(
        trio.base, expert, anti, tokenizer=trio.tokenizer, speculation=speculation, compile=options.compile
    )
    return Variant(
        name=name,
        run=partial(decode, generator, alpha=alpha),
        reads="pair" if is_pair else "trio" if alpha else "base",
        tokens_of="trio" if alpha else "base",
        inspect=partial(statistics_of, generator) if has_drafts else None,
    )


def _generate(trio: Trio, options: Options) -> Variant:
    """Return the composite in transformers' own `generate`; prompts are of one length."""
    model: Any = ProxyGenerator(*trio.models, tokenizer=trio.tokenizer, compile=options.compile).model

    @torch.inference_mode()
    def run(requests: Requests) -> Decoded:
        rows: list[list[int]] = []
        started = time.perf_counter()
        for batch in requests.batches():
            ids = torch.tensor(batch.prompts, device=model.device)
            done = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=batch.counts[0],
                do_sample=False,
                eos_token_id=None,
            )
            rows += done[:, ids.shape[1] :].tolist()
        return Decoded(token_ids=rows, seconds=time.perf_counter() - started)

    return Variant(name=GENERATE, run=run)


def decode(generator: ProxyGenerator, requests: Requests, *, alpha: float = 1.0) -> Decoded:
    """Decode rows of one count greedily through ProxyGenerator, whatever ends an answer."""
    started = time.perf_counter()
    done = _completions(generator, requests, alpha=alpha)
    seconds = time.perf_counter() - started
    has_first = len(done) <= requests.batch and done[0].timing.stats is None
    return Decoded(
        token_ids=[list(completion.token_ids) for completion in done],
        seconds=seconds,
        first_token_seconds=done[0].timing.first_token_seconds if has_first else None,
    )


def statistics_of(generator: ProxyGenerator, requests: Requests) -> Statistics:
    """Return the figures of drafts and of a remote base; rows of a batch share them."""
    done = _completions(generator, requests, stats=True)
    batches = [row.timing.stats for row in done[:: requests.batch] if row.timing.stats is not None]
    num_tokens = sum(stats.num_tokens for stats in batches)
    masses = [mass for row in done for mass in row.base_mass or ()]
    asked = [stats.requests_per_token * stats.num_tokens for stats in batches if stats.requests_per_token is not None]
    num_drafted = sum(stats.num_drafted * stats.num_tokens for stats in batches) / max(1, num_tokens)
    per_cycle = sum(stats.tokens_per_cycle * stats.num_tokens for stats in batches) / max(1, num_tokens)
    return Statistics(
        # A cycle gives the drafts that stood and one token more.
        acceptance=min(1.0, (per_cycle - 1) / num_drafted) if num_drafted else None,
        acceptance_by_place=batches[0].acceptance if num_drafted else (),
        num_drafted=num_drafted or None,
        tokens_per_cycle=per_cycle if num_drafted else None,
        requests_per_token=sum(asked) / num_tokens if asked else None,
        mean_mass=sum(masses) / len(masses) if masses else None,
        least_mass=min(masses, default=None),
    )


def _completions(generator: ProxyGenerator, requests: Requests, **options: Any) -> list[Completion]:
    done = generator.generate(
        [list(prompt) for prompt in requests.prompts],
        max_new_tokens=requests.counts[0],
        batch_size=requests.batch,
        ignore_eos=True,
        **options,
    )
    failed = next((row.error for row in done if row.error is not None), None)
    if failed is not None:
        raise VariantError(f"a row ended with an error: {failed}")
    return done


def save_trio(trio: Trio, folder: Path) -> list[Path]:
    """Write base, expert and anti as folders that an engine or a server can load, and return them."""
    folders = []
    for name, model in zip(("base", "expert", "anti"), trio.models, strict=True):
        model.save_pretrained(folder / name)
        trio.tokenizer.save_pretrained(folder / name)
        folders.append(folder / name)
    return folders
