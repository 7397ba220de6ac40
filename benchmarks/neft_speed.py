"""What NEFTune's noise and packing do to training speed: `python benchmarks/neft_speed.py`.

Two ratios of tokens per second, both of runs of the same Trainer in one process, taken in turns, medians:

- with noise against without, the same rows in the same order (target: at least 0.9);
- packed windows against padded rows, at the lengths of Alpaca (target: at least 2).

Lengths are those of ../shared/data/instruct/alpaca_data.json.gz if it is there (characters of the filled Alpaca prompt
and answer, by four), else drawn from the lognormal named in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

import neft
from neft.data import Example, PackingCollator, PaddingCollator, pack

_ALPACA = Path("../shared/data/instruct/alpaca_data.json.gz")
_TEMPLATE_CHARACTERS = 160
_CHARACTERS_PER_TOKEN = 4
_LOGNORMAL = {"median": 90.0, "sigma": 0.6}
_VOCABULARY = 2000


def main() -> int:
    """Runs both comparisons, prints a table to stderr and one JSON line to stdout."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    lengths, source = _lengths(options.rows, options.window)
    examples = [_example(length, seed) for seed, length in enumerate(lengths)]
    noise = _noise_ratio(options, examples)
    packing = _packing_ratio(options, examples)
    result = {
        "benchmark": "neft_speed",
        "lengths": {"source": source, "mean": statistics.mean(lengths), "longest": max(lengths)},
        "settings": vars(options),
        "noise": noise,
        "packing": packing,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load": os.getloadavg(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    sys.stderr.write(_table(noise, packing))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="documents to draw batches from")
    parser.add_argument("--window", type=int, default=512, help="tokens per packed window")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per padded batch")
    parser.add_argument("--steps", type=int, default=50, help="steps per run with and without noise")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind, in turns")
    parser.add_argument("--hidden", type=int, default=128, help="width of the Llama that is trained")
    parser.add_argument("--layers", type=int, default=4, help="its layers")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu counts this process's time: for a busy machine"
    )
    return parser


def _noise_ratio(options: argparse.Namespace, examples: Sequence[Example]) -> dict[str, Any]:
    collator = PaddingCollator(0)

    def run(alpha: float | None) -> float:
        return _tokens_per_s(
            options, examples, collator, steps=options.steps, batch_size=options.batch_size, alpha=alpha
        )

    speeds = _in_turns({"plain": lambda: run(None), "noise": lambda: run(5.0)}, options.rounds)
    return _compared(speeds, "noise", "plain")


def _packing_ratio(options: argparse.Namespace, examples: Sequence[Example]) -> dict[str, Any]:
    """Compares batches of the same size in rows: padded to the longest row, as the recipe has it, or packed."""
    packs = pack(examples, max_length=options.window).packs
    packed_rows = max(1, options.batch_size // 4)

    def fixed(batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        return _to_window(PaddingCollator(0)(batch), options.window)

    def run(rows: Sequence[Any], collator: Callable[..., Any], batch_size: int) -> float:
        return _tokens_per_s(
            options, rows, collator, steps=max(2, options.steps // 5), batch_size=batch_size, alpha=5.0
        )

    speeds = _in_turns(
        {
            "padded_to_window": lambda: run(examples, fixed, packed_rows),
            "padded_to_longest": lambda: run(examples, PaddingCollator(0), options.batch_size),
            "packed": lambda: run(packs, PackingCollator(0, width=options.window), packed_rows),
        },
        options.rounds,
    )
    against_window = _compared(speeds, "packed", "padded_to_window")
    return {**against_window, "ratio_to_longest": _compared(speeds, "packed", "padded_to_longest")["ratio"]}


def _in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    for run in runs.values():
        run()  # caches and allocators
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(run())
    return speeds


def _compared(speeds: dict[str, list[float]], name: str, reference: str) -> dict[str, Any]:
    """Returns medians in tokens per second, and the median of the ratios within a round."""
    ratios = [one / other for one, other in zip(speeds[name], speeds[reference], strict=True)]
    medians = {key: round(statistics.median(values), 1) for key, values in speeds.items()}
    return {
        "tokens_per_s": medians,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _tokens_per_s(
    options: argparse.Namespace,
    rows: Sequence[Any],
    collator: Callable[..., Any],
    *,
    steps: int,
    batch_size: int,
    alpha: float | None,
) -> float:
    """Trains a fresh model and returns its speed in *real* tokens, padding not counted."""
    num_tokens = 0

    def counting(batch: Sequence[Any]) -> dict[str, torch.Tensor]:
        nonlocal num_tokens
        num_tokens += sum(_num_tokens(row) for row in batch)
        return collator(batch)  # type: ignore[no-any-return]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        model = _model(options)
        trainer = Trainer(model=model, args=arguments, train_dataset=list(rows), data_collator=counting)
        trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]
        block = contextlib.nullcontext() if alpha is None else neft.noise(model, alpha=alpha)
        with block:
            clock = time.process_time if options.clock == "cpu" else time.perf_counter
            start_s = clock()
            trainer.train()
            return num_tokens / (clock() - start_s)


def _model(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        max_position_embeddings=options.window,
    )
    return LlamaForCausalLM(config)


def _lengths(num_rows: int, window: int) -> tuple[list[int], str]:
    draw = random.Random(0)
    if _ALPACA.exists():
        with gzip.open(_ALPACA, "rt", encoding="utf-8") as file:
            rows = draw.sample(json.load(file), num_rows)
        characters = [_TEMPLATE_CHARACTERS + sum(len(value) for value in row.values()) for row in rows]
        return [min(window, count // _CHARACTERS_PER_TOKEN) for count in characters], "alpaca, characters / 4"
    median, sigma = _LOGNORMAL["median"], _LOGNORMAL["sigma"]
    lengths = [min(window, max(8, int(median * draw.lognormvariate(0.0, sigma)))) for _ in range(num_rows)]
    return lengths, f"lognormal, median {median:g}, sigma {sigma:g}"


def _example(length: int, seed: int) -> Example:
    draw = random.Random(seed)
    ids = [draw.randrange(1, _VOCABULARY) for _ in range(length)]
    return Example(ids, ids)


def _num_tokens(row: Any) -> int:
    return sum(len(one.input_ids) for one in row) if isinstance(row, tuple) else len(row.input_ids)


def _to_window(batch: dict[str, torch.Tensor], window: int) -> dict[str, torch.Tensor]:
    filled = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    gap = window - batch["input_ids"].shape[1]
    return {name: torch.nn.functional.pad(tensor, (0, gap), value=filled[name]) for name, tensor in batch.items()}


def _table(noise: dict[str, Any], packing: dict[str, Any]) -> str:
    lines = [f"{'run':<20}{'tokens/s':>12}"]
    for part in (noise, packing):
        lines += [f"{name:<20}{speed:>12.1f}" for name, speed in part["tokens_per_s"].items()]
    lines.append(f"noise / plain: {noise['ratio']} (target 0.9)")
    lines.append(f"packed / padded to the window: {packing['ratio']} (target 2)")
    lines.append(f"packed / padded to the batch's longest: {packing['ratio_to_longest']}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
