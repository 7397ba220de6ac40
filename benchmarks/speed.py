"""What steering costs per token, beside what it must: `python -m benchmarks.speed`.

Without options it measures the bundled trio, inflated to a large model's cost (0.3B against 26M), so that drafts are
accepted as they are in earnest. `--shape llama2-13b,llama2-7b,llama2-7b` takes random weights of those sizes on the
device; `--base --expert --anti` any models; `--trio real` SmolLM2-135M and the pair of `make real`. Variants: the base
alone (a lean eager loop, and our own loop at α = 0), a naive loop of three models as the published code has it, ours
plain, with the pair in one pass, and speculative; of the real trio also transformers' generate and vLLM's engine.

All variants first decode the same rows, and their tokens are compared; then they take turns, round by round.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.decoding.equality import Agreement, check_tokens
from benchmarks.decoding.floor import TrioBytes
from benchmarks.decoding.interleave import in_turns
from benchmarks.decoding.machine import read_gb_per_s
from benchmarks.decoding.measuring import Measured, Setting, new_row
from benchmarks.decoding.memory import with_peak
from benchmarks.decoding.naive import Decoded, Drafting, naive_loop
from benchmarks.decoding.plot import plot_rows
from benchmarks.decoding.rows import Row, read_rows, table, write_rows
from benchmarks.decoding.shapes import parse_shapes
from benchmarks.decoding.trios import Trio, inflated_trio, loaded_trio, shape_trio
from benchmarks.decoding.variants import (
    ALONE,
    BASE,
    EXTRA_NAMES,
    GENERATE,
    NAIVE,
    NAMES,
    PLAIN,
    SPECULATIVE,
    VLLM,
    WITH_PAIR,
    Engine,
    Variant,
    drafting,
    variants,
)
from benchmarks.decoding.workloads import Workload, WorkloadError, parse_workload
from benchmarks.real.recipe import Recipe
from benchmarks.real.speed_trio import trio_folders
from proxytune import ProxyTuneError

Call = Callable[[], Decoded]

# The paper's three at batch 1, then larger batches.
_PROTOCOL = ("8:512@1", "512:8@1", "8:8@1", "64:64@1", "64:64@8", "64:64@32")
# A trio of 0.1 billion parameters takes this on two cores in minutes, both dtypes together.
_REAL = ("64:32@1", "512:32@1", "64:32@8", "512:8@8")
_QUICK = ("8:8@1", "128:8@1", "16:32@1", "16:8@8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options to a parser."""
    models = parser.add_argument_group("models (default: the bundled trio, inflated)")
    models.add_argument(
        "--trio",
        choices=("demo", "real"),
        default="demo",
        help="real: SmolLM2-135M and the pair of `make real`, in float32 and bfloat16, vLLM among the variants",
    )
    models.add_argument("--shape", metavar="B,E,A", help="random weights: llama2-13b,llama2-7b,llama2-7b; name:20 cuts")
    for role in ("base", "expert", "anti"):
        models.add_argument(f"--{role}", metavar="MODEL", help=f"hub id or folder of the {role}")
    models.add_argument("--questions", type=Path, metavar="FILE", help="prompts for --base, one per line")
    models.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, bfloat16 on CUDA"
    )
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    models.add_argument("--rank", type=int, default=8, help="of the LoRA in --shape and the inflated trio (default 8)")
    parser.add_argument("--workloads", nargs="+", metavar="PROMPT:NEW@BATCH", help=f"default: {' '.join(_PROTOCOL)}")
    known = " ".join([*NAMES, *EXTRA_NAMES])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of {known}")
    parser.add_argument("--speculation", default="auto", help="auto or a number of drafts (default auto)")
    parser.add_argument("--compile", choices=("auto", "off"), default="auto")
    parser.add_argument(
        "--rounds", type=int, help="timed runs of each variant (default 3; 2 with --quick, 1 of --trio real)"
    )
    parser.add_argument("--quick", action="store_true", help="short workloads: minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one row per variant and workload")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the ratios")
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
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # cuDNN's attention makes a plan at every new length: the naive loop and the base alone would pay for it, ours not.
    torch.backends.cuda.enable_cudnn_sdp(False)
    rows: list[Row] = []
    for dtype in _dtypes(options):
        for of_workload in _measured(options, dtype):
            rows += of_workload
            if options.json is not None:
                write_rows(options.json, rows)
    sys.stdout.write(table(rows))
    if options.png is not None:
        plot_rows(options.png, rows)
    return 0


def _dtypes(options: argparse.Namespace) -> tuple[torch.dtype, ...]:
    """Return the dtypes that are measured, one after the other."""
    if options.dtype is not None:
        return (getattr(torch, options.dtype),)
    if options.trio == "real":
        return torch.float32, torch.bfloat16
    return (torch.bfloat16 if torch.device(options.device).type == "cuda" else torch.float32,)


def _measured(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[list[Row]]:
    """Yield the rows of each workload in one dtype; engines end with the last."""
    default = _QUICK if options.quick else _REAL if options.trio == "real" else _PROTOCOL
    workloads = [parse_workload(text) for text in options.workloads or default]
    context = max(work.prompt_tokens + work.new_tokens for work in workloads) + 64
    names = _variant_names(options)
    trio = _trio(options, names, dtype=dtype, context=context)
    measured = variants(trio, names, Engine(speculation=_speculation(options.speculation), compile=options.compile))
    setting = Setting(
        benchmark="speed",
        models=trio.label,
        dtype=trio.base.dtype,
        device=trio.base.device,
        device_gb_per_s=read_gb_per_s(trio.base.device),
        is_quick=options.quick,
    )
    rounds = options.rounds or (2 if options.quick else 1 if options.trio == "real" else 3)
    try:
        for workload in workloads:
            _note(f"{workload.label}, {dtype}: checking tokens, then {rounds} rounds")
            yield measure(trio, measured, workload, setting, rounds=rounds)
    finally:
        for one in measured:
            one.close()


def _variant_names(options: argparse.Namespace) -> list[str]:
    """Return the variants that were asked for, or those of the trio; vLLM's only where it is installed."""
    if options.variants:
        return list(options.variants)
    if options.trio == "demo":
        return list(NAMES)
    engine = [VLLM] if find_spec("vllm") is not None else []
    return [BASE, NAIVE, GENERATE, PLAIN, SPECULATIVE, *engine]


def _trio(options: argparse.Namespace, names: Sequence[str], *, dtype: torch.dtype, context: int) -> Trio:
    device = torch.device(options.device)
    named = [options.base, options.expert, options.anti]
    if options.shape and (any(named) or options.trio == "real"):
        raise WorkloadError("--shape with --trio, --base, --expert or --anti: pass one or the other.")
    if options.shape:
        return shape_trio(
            parse_shapes(options.shape),
            dtype=dtype,
            device=device,
            rank=options.rank,
            context=max(context, 4096),
            has_pair=any(name in WITH_PAIR for name in names),
        )
    if options.trio == "real":
        if any(named):
            raise WorkloadError("--trio real with --base, --expert or --anti: pass one or the other.")
        label, folders = trio_folders(Recipe())
        return replace(loaded_trio(*map(str, folders), dtype=dtype, device=device), label=label)
    if not any(named):
        return inflated_trio(dtype=dtype, device=device, rank=options.rank)
    if not all(named):
        raise WorkloadError("--base, --expert and --anti go together: pass all three.")
    return loaded_trio(*named, dtype=dtype, device=device, questions=options.questions)


def measure(trio: Trio, measured: Sequence[Variant], workload: Workload, setting: Setting, *, rounds: int) -> list[Row]:
    """Check every variant's tokens, time all in turns, and return a row for each.

    Raises:
        TokensDifferError: A variant decodes other tokens than the naive loop.
    """
    prompts, count = trio.prompts(workload.batch, workload.prompt_tokens), workload.new_tokens
    calls: dict[str, Call] = {one.name: partial(one.run, prompts, count) for one in measured}
    checked = _check(trio, calls, prompts, count)
    timed = in_turns(calls, rounds)
    found = []
    for one in measured:
        agreement, peak_bytes = checked[one.name]
        fared = None if one.generator is None else drafting(one.generator, prompts, count)
        result = Measured(
            variant=one.name,
            base_variant=BASE,
            batch=workload.batch,
            prompt_tokens=workload.prompt_tokens,
            new_tokens=count,
            num_tokens=workload.batch * count,
            bytes_per_token=_bytes_per_token(one.name, trio.num_bytes, fared),
            base_bytes=trio.num_bytes.base,
            weight_bytes=_weight_bytes(one.name, trio.num_bytes),
            kv_bytes_per_token=trio.kv_bytes[0 if one.name in ALONE else 1],
            equal_rows=f"{agreement.num_equal}/{agreement.num_rows}",
            peak_bytes=peak_bytes,
            drafting=fared,
        )
        found.append(new_row(setting, result, timed, naive=NAIVE, plain=PLAIN))
    return found


def _check(
    trio: Trio, calls: dict[str, Call], prompts: list[list[int]], count: int
) -> dict[str, tuple[Agreement, int | None]]:
    """Run every variant once, untimed; return how its tokens compare and how far memory rose."""
    pad = trio.tokenizer.pad_token_id or 0
    references: dict[bool, list[list[int]]] = {}
    checked = {}
    for name, call in calls.items():
        is_alone = name in ALONE
        models = trio.models[:1] if is_alone else trio.models
        first, peak_bytes = with_peak(call, trio.base.device)
        if is_alone not in references:
            references[is_alone] = naive_loop(models, prompts, max_new_tokens=count, pad_token_id=pad).token_ids
        agreement = check_tokens(name, first.token_ids, references[is_alone], models=models, prompts=prompts)
        checked[name] = agreement, peak_bytes
    return checked


def _bytes_per_token(name: str, num_bytes: TrioBytes, fared: Drafting | None) -> float:
    """Return what a variant has to read of weights per token and row, with the drafts it made."""
    if name in ALONE:
        return num_bytes.base
    if fared is not None:
        own = num_bytes if name in WITH_PAIR else replace(num_bytes, adapter=0)
        return own.speculative(num_drafted=fared.num_drafted, tokens_per_cycle=fared.tokens_per_cycle)
    return num_bytes.pair if name in WITH_PAIR else num_bytes.plain


def _weight_bytes(name: str, num_bytes: TrioBytes) -> int:
    if name in ALONE:
        return num_bytes.base
    return num_bytes.pair if name in WITH_PAIR else num_bytes.plain


def _speculation(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _note(text: str) -> None:
    sys.stderr.write(f"speed: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
