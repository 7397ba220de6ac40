"""Tokens per second of the composite inside vLLM: `python -m benchmarks.throughput`.

Against it stand the base alone in vLLM, the transformers runtime, the base alone in a lean transformers loop, and a
naive loop of three models. Random weights of the shapes named; equal rows at batch 1, 8 and 32, and a ragged workload:
requests whose prompts and answers differ in length, which the naive loop takes in batches that last as long as their
longest row. Ratios are to the base alone in the same engine and mode, beside the floor by bytes of weights.

Every variant's tokens are compared before it is timed. Weights are random and in 16 bits, where kernels break ties each
in their way: a row that differs from the naive loop's must be its own teacher-forced argmax, within rounding.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.decoding.contestants import NAIVE, REFERENCES, Call, Contestants, is_base, started
from benchmarks.decoding.engines import set_up_environment
from benchmarks.decoding.equality import check_tokens
from benchmarks.decoding.interleave import in_turns
from benchmarks.decoding.machine import read_gb_per_s
from benchmarks.decoding.measuring import Measured, Setting, new_row
from benchmarks.decoding.naive import naive_loop
from benchmarks.decoding.rows import Row, read_rows, table, write_rows
from benchmarks.decoding.shapes import parse_shapes
from benchmarks.decoding.trios import Trio, shape_trio
from benchmarks.decoding.workloads import ragged_requests
from proxytune import ProxyTuneError

_SHAPES = "llama-120m,llama-25m,llama-25m"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is measured, by size. Of the ragged requests, `num_checked` have their tokens compared."""

    batches: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 64
    new_tokens: int = 64
    num_requests: int = 200
    ragged_prompt: tuple[int, int] = (8, 128)
    ragged_new: tuple[int, int] = (8, 256)
    in_flight: int = 64
    num_checked: int = 32
    rounds: int = 3

    @property
    def max_length(self) -> int:
        """The longest sequence, and one more."""
        return max(self.prompt_tokens + self.new_tokens, self.ragged_prompt[1] + self.ragged_new[1]) + 1


_QUICK = _Plan(
    batches=(1, 8),
    prompt_tokens=16,
    new_tokens=16,
    num_requests=24,
    ragged_prompt=(8, 32),
    ragged_new=(4, 32),
    in_flight=12,
    num_checked=8,
    rounds=2,
)


@dataclass(frozen=True, kw_only=True)
class _Workload:
    """Prompts, how many tokens each is to get, and how the variants of it are described."""

    prompts: Sequence[Sequence[int]]
    counts: Sequence[int]
    batch: int
    num_checked: int
    requests: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options to a parser."""
    parser.add_argument("--shape", default=_SHAPES, metavar="B,E,A", help=f"sizes of the models (default {_SHAPES})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    names = list(REFERENCES)
    parser.add_argument("--variants", nargs="+", default=names, metavar="NAME", help=f"some of {' '.join(names)}")
    parser.add_argument("--batches", nargs="*", type=int, metavar="B", help="default: 1 8 32; none for ragged only")
    parser.add_argument("--no-ragged", action="store_true", help="equal rows only")
    parser.add_argument("--rounds", type=int, help="timed runs of each variant (default 3; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short rows and few requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one row per variant and workload")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the tables of what --json wrote, no more")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except ProxyTuneError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def run(options: argparse.Namespace) -> int:
    """Measure what parsed options ask for.

    Raises:
        ProxyTuneError: An option cannot be used, or a variant decodes other tokens.
    """
    if options.markdown is not None:
        sys.stdout.write(table(read_rows(options.markdown), is_markdown=True))
        return 0
    set_up_environment()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    plan = _QUICK if options.quick else _Plan()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    trio = shape_trio(parse_shapes(options.shape), dtype=dtype, device=device, context=plan.max_length)
    batches = plan.batches if options.batches is None else options.batches
    setting = Setting(
        benchmark="throughput",
        models=trio.label,
        dtype=dtype,
        device=device,
        device_gb_per_s=read_gb_per_s(device),
        is_quick=options.quick,
    )
    rows: list[Row] = []
    max_rows = max([plan.in_flight, *batches])
    with started(trio, options.variants, max_length=plan.max_length, max_rows=max_rows) as contestants:
        for calls, workload in _contests(contestants, plan, batches, is_ragged=not options.no_ragged):
            rows += _measure(calls, workload, trio, setting, rounds=options.rounds or plan.rounds)
            if options.json is not None:
                write_rows(options.json, rows)
    sys.stdout.write(table(rows))
    return 0


def _contests(
    contestants: Contestants, plan: _Plan, batches: Sequence[int], *, is_ragged: bool
) -> list[tuple[dict[str, Call], _Workload]]:
    """Return the workloads in their order, each with a call per variant."""
    found = []
    for batch in batches:
        prompts = contestants.trio.prompts(batch, plan.prompt_tokens)
        work = _Workload(prompts=prompts, counts=[plan.new_tokens] * batch, batch=batch, num_checked=batch)
        found.append((contestants.equal_rows(prompts, plan.new_tokens), work))
    if is_ragged:
        requests = ragged_requests(
            plan.num_requests,
            prompt_tokens=plan.ragged_prompt,
            new_tokens=plan.ragged_new,
            vocab_size=contestants.trio.base.config.vocab_size,
            seed=0,
        )
        work = _Workload(
            prompts=[one.prompt for one in requests],
            counts=[one.new_tokens for one in requests],
            batch=plan.in_flight,
            num_checked=plan.num_checked,
            requests=len(requests),
        )
        found.append((contestants.ragged(requests, in_flight=plan.in_flight), work))
    return found


def _measure(calls: dict[str, Call], workload: _Workload, trio: Trio, setting: Setting, *, rounds: int) -> list[Row]:
    """Check every variant's tokens, time all in turns, and return a row for each.

    Raises:
        TokensDifferError: A variant decodes other tokens than the naive loop.
    """
    what = f"{workload.requests} ragged requests" if workload.requests else f"batch {workload.batch}"
    _note(f"{what}: checking tokens")
    equal = _checked(calls, workload, trio)
    _note(f"{what}: {rounds} rounds")
    timed = in_turns(calls, rounds)
    found = []
    for name in timed:
        num_bytes = trio.num_bytes.base if is_base(name) else trio.num_bytes.plain
        measured = Measured(
            variant=name,
            base_variant=REFERENCES[name],
            batch=workload.batch,
            prompt_tokens=statistics.mean(len(prompt) for prompt in workload.prompts),
            new_tokens=statistics.mean(workload.counts),
            num_tokens=sum(workload.counts),
            bytes_per_token=num_bytes,
            base_bytes=trio.num_bytes.base,
            weight_bytes=num_bytes,
            kv_bytes_per_token=trio.kv_bytes[0 if is_base(name) else 1],
            equal_rows=equal[name],
            requests=workload.requests,
        )
        found.append(new_row(setting, measured, timed, naive=NAIVE))
    return found


def _checked(calls: Mapping[str, Call], workload: _Workload, trio: Trio) -> dict[str, str]:
    """Return per variant how many of the checked rows equal the naive loop's."""
    shown = workload.num_checked
    references: dict[bool, list[list[int]]] = {}
    found = {}
    for name, call in calls.items():
        models = trio.models[:1] if is_base(name) else trio.models
        if is_base(name) not in references:
            references[is_base(name)] = _reference(models, workload)
        agreement = check_tokens(
            name,
            call().token_ids[:shown],
            references[is_base(name)],
            models=models,
            prompts=workload.prompts[:shown],
        )
        found[name] = f"{agreement.num_equal}/{agreement.num_rows}"
    return found


def _reference(models: Sequence[Any], workload: _Workload) -> list[list[int]]:
    shown = workload.num_checked
    counts = workload.counts[:shown]
    decoded = naive_loop(models, workload.prompts[:shown], max_new_tokens=max(counts), pad_token_id=0)
    return [row[:count] for row, count in zip(decoded.token_ids, counts, strict=True)]


def _note(text: str) -> None:
    sys.stderr.write(f"throughput: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
