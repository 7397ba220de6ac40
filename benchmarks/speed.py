"""Time per token of every way of decoding, beside the floor by bytes: `python -m benchmarks.speed`.

Without options it measures the bundled trio, inflated to a large model's cost (0.3B against 26M), so that drafts are
accepted as they are in earnest. `--shape llama2-13b,llama2-7b,llama2-7b` takes random weights of those sizes on the
device; `--base --expert --anti` any models; `--trio real` SmolLM2-135M and the pair of `make real`. Any variants run
together, by name. `--suite throughput` is batches and ragged requests in vLLM; `--suite remote` a base behind an API
(at `--base-url`, else in a vLLM server on this machine); `--suite training` noise and packing in fine-tuning.

All variants first decode the same rows, and their tokens are compared; then they take turns, round by round.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.decoding.construction import new_variants
from benchmarks.decoding.machine import read_gb_per_s
from benchmarks.decoding.measuring import Setting, measure
from benchmarks.decoding.plot import plot_rows
from benchmarks.decoding.rows import Row, read_rows, table, write_rows
from benchmarks.decoding.shapes import parse_shapes
from benchmarks.decoding.trios import Trio, bundled_trio, inflated_trio, loaded_trio, shape_trio
from benchmarks.decoding.variants import (
    BASE,
    GENERATE,
    NAIVE,
    NAMES,
    PLAIN,
    REMOTE,
    VLLM_NAMES,
    Options,
    close_all,
)
from benchmarks.decoding.workloads import WorkloadError, parse_workload
from proxytune import ProxyTuneError, RemoteSettings
from proxytune.demo import trio_path
from proxytune.errors import InputError, OptionError

_REMOTE_NAMES = tuple(f"remote{seen}{drafts}" for seen in ("", "@20") for drafts in ("", ":4", ":8", ":auto"))
_NUM_DOCUMENTS = 400


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Defaults of a benchmark: variants, workloads, short ones for --quick, and models by shape."""

    variants: Sequence[str]
    workloads: Sequence[str]
    quick: Sequence[str]
    shape: str | None = None
    rounds: int = 3


SUITES = {
    # The paper's three at batch 1, then larger batches.
    "speed": Suite(
        variants=NAMES,
        workloads=("8:512@1", "512:8@1", "8:8@1", "64:64@1", "64:64@8", "64:64@32"),
        quick=("8:8@1", "128:8@1", "16:32@1", "16:8@8"),
    ),
    "throughput": Suite(
        variants=(*VLLM_NAMES, BASE, PLAIN, NAIVE),
        workloads=("64:64@1", "64:64@8", "64:64@32", "8-128:8-256@64x200"),
        quick=("16:16@1", "16:16@8", "8-32:4-32@12x24"),
        shape="llama-120m,llama-25m,llama-25m",
    ),
    "remote": Suite(
        variants=(BASE, PLAIN, *_REMOTE_NAMES), workloads=("16:32@1x32", "16:32@8x32"), quick=("16:16@1x4", "16:16@8x8")
    ),
    "training": Suite(variants=("train", "train_noise", "train_window", "train_packed"), workloads=(), quick=()),
}
# A trio of 0.1 billion parameters takes this on two cores in minutes, both dtypes together.
_REAL = Suite(
    variants=(BASE, NAIVE, GENERATE, PLAIN, "speculative", "vllm"),
    workloads=("64:32@1", "512:32@1", "64:32@8", "512:8@8"),
    quick=("8:8@1", "128:8@1", "16:32@1", "16:8@8"),
    rounds=1,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options to a parser."""
    parser.add_argument("--suite", choices=tuple(SUITES), default="speed", help="which defaults to take (speed)")
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
    models.add_argument("--base-url", metavar="URL", help="of the server of --base openai:MODEL")
    models.add_argument("--local-base", metavar="MODEL", help="the same base here, to compare tokens with")
    models.add_argument("--questions", type=Path, metavar="FILE", help="prompts for --base, one per line")
    models.add_argument("--lengths", type=Path, metavar="FILE", help="Alpaca's JSON: lengths of --suite training")
    models.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, bfloat16 on CUDA"
    )
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    models.add_argument("--rank", type=int, default=8, help="of the LoRA in --shape and the inflated trio (default 8)")
    parser.add_argument(
        "--workloads",
        nargs="+",
        metavar="PROMPT:NEW@BATCH",
        help=f"default: {' '.join(SUITES['speed'].workloads)}; 8-128:8-256@64x200 are ragged requests, 64 at once",
    )
    known = " ".join([*NAMES, GENERATE, *VLLM_NAMES, *_REMOTE_NAMES, *SUITES["training"].variants])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of {known}; speculative:4 makes 4 drafts")
    parser.add_argument("--speculation", default="auto", help="auto or a number of drafts (default auto)")
    parser.add_argument("--verification", default="auto", metavar="WAY", help="how drafts of remote are checked (auto)")
    parser.add_argument("--compile", choices=("auto", "off"), default="auto")
    parser.add_argument("--rounds", type=int, help="timed runs of each variant (3; 2 with --quick, 1 of --trio real)")
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
    suite = _REAL if options.trio == "real" else SUITES[options.suite]
    rows: list[Row] = []
    for dtype in _dtypes(options):
        for of_workload in (
            _training(options, suite) if options.suite == "training" else _decoding(options, suite, dtype)
        ):
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
    is_16_bit = options.suite == "throughput" or torch.device(options.device).type == "cuda"
    return (torch.bfloat16 if is_16_bit and options.suite != "training" else torch.float32,)


def _decoding(options: argparse.Namespace, suite: Suite, dtype: torch.dtype) -> Iterator[list[Row]]:
    """Yield the rows of each workload in one dtype; engines and server end with the last."""
    workloads = [
        parse_workload(text) for text in options.workloads or (suite.quick if options.quick else suite.workloads)
    ]
    max_len = max(work.max_len for work in workloads)
    names = options.variants or [
        name for name in suite.variants if not (options.trio == "real" and name == "vllm") or find_spec("vllm")
    ]
    with ExitStack() as stack:
        remote = stack.enter_context(_remote(options)) if any(name.startswith(REMOTE) for name in names) else None
        trio = _trio(options, suite, names, dtype=dtype, context=max_len + 64)
        if trio.base is None:
            names = [name for name in names if name.startswith(REMOTE)]
        settings = Options(
            speculation=int(options.speculation) if options.speculation.isdecimal() else options.speculation,
            compile=options.compile,
            max_len=max_len + 1,
            max_rows=max(work.batch for work in workloads),
            remote=remote,
            verification=options.verification,
        )
        variants = new_variants(trio, names, settings)
        stack.callback(close_all, variants)
        setting = _setting(options, trio.label, dtype)
        for work in workloads:
            rounds = _rounds(options, suite)
            _note(f"{work.label}, {dtype}: checking tokens, then {rounds} rounds")
            yield measure(trio, variants, work.requests(trio.prompts), setting, rounds=rounds)


def _training(options: argparse.Namespace, suite: Suite) -> Iterator[list[Row]]:
    from benchmarks.decoding import training

    variants = training.training_variants(options.variants or suite.variants)
    num_documents = _NUM_DOCUMENTS // 10 if options.quick else _NUM_DOCUMENTS
    requests = training.documents(num_documents, batch=8, lengths_of=options.lengths)
    setting = replace(_setting(options, training.LABEL, torch.float32), naive="train_window", plain="train_noise")
    _note(f"{num_documents} documents, {_rounds(options, suite)} rounds")
    yield measure(None, variants, requests, setting, rounds=_rounds(options, suite))


def _setting(options: argparse.Namespace, label: str, dtype: torch.dtype) -> Setting:
    device = torch.device(options.device)
    return Setting(
        benchmark=options.suite,
        models=label,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        device_gb_per_s=read_gb_per_s(device),
        is_quick=options.quick,
    )


def _rounds(options: argparse.Namespace, suite: Suite) -> int:
    return int(options.rounds or (min(2, suite.rounds) if options.quick else suite.rounds))


def _trio(options: argparse.Namespace, suite: Suite, names: Sequence[str], *, dtype: torch.dtype, context: int) -> Trio:
    device = torch.device(options.device)
    given = [options.base, options.expert, options.anti]
    is_remote = options.base_url is not None or options.suite == "remote"
    if sum((options.trio == "real", bool(options.shape), any(given))) > 1:
        raise WorkloadError("--trio real, --shape and --base, --expert, --anti: pass one of the three.")
    if options.trio == "real":
        from benchmarks.real.recipe import Recipe
        from benchmarks.real.speed_trio import trio_folders

        label, folders = trio_folders(Recipe())
        return loaded_trio(*map(str, folders), dtype=dtype, device=device, label=label)
    if is_remote:
        folder = trio_path()
        if not any(given):
            return bundled_trio(dtype=dtype, device=device)
        base = options.local_base or (None if options.base_url else options.base)
        small = [options.expert or str(folder / "expert"), options.anti or str(folder / "anti")]
        return loaded_trio(base, *small, dtype=dtype, device=device, **_texts(options))
    if any(given):
        if not all(given):
            raise WorkloadError("--base, --expert and --anti go together: pass all three.")
        return loaded_trio(*given, dtype=dtype, device=device, **_texts(options))
    shape = options.shape or suite.shape
    if shape is None:
        return inflated_trio(dtype=dtype, device=device, rank=options.rank)
    return shape_trio(
        parse_shapes(shape),
        dtype=dtype,
        device=device,
        rank=options.rank,
        context=max(context, 4096),
        has_pair=any(name.startswith("pair") for name in names),
    )


def _texts(options: argparse.Namespace) -> dict[str, Any]:
    if options.questions is None:
        return {}
    try:
        return {"texts": [line for line in options.questions.read_text(encoding="utf-8").splitlines() if line.strip()]}
    except OSError as error:
        raise InputError(f"cannot read {str(options.questions)!r}: {error.strerror or error}.") from error


@contextmanager
def _remote(options: argparse.Namespace) -> Iterator[RemoteSettings]:
    """Yield where the base is asked: at the URL that was given, or in a server of the benchmark's own."""
    from benchmarks.decoding.remote_base import NAME, vllm_server

    is_named = (options.base or "").startswith("openai:")
    if is_named != (options.base_url is not None):
        raise OptionError("--base openai:MODEL and --base-url go together: pass both, or none for a server here.")
    if is_named:
        yield RemoteSettings(model=options.base.removeprefix("openai:"), base_url=options.base_url)
        return
    _note("starting a vLLM server with the base")
    with vllm_server(Path(options.base or trio_path() / "base")) as url:
        yield RemoteSettings(model=NAME, base_url=url)


def _note(text: str) -> None:
    sys.stderr.write(f"speed: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
