"""vLLM's side of the comparison: the base alone in an engine of its own, and the composite through ProxyGenerator.

Engines stay up and idle while others have their turn. Prefix caching is off, since every round reads the same prompts.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding.naive import Decoded
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.workloads import RaggedRequest
from proxytune import ProxyGenerator

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, of each engine
    "VLLM_CPU_OMP_THREADS_BIND": "",  # filled in: all cores, where vLLM would keep one back
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
}
_GPU_SHARE = 0.9


def set_up_environment() -> None:
    """Set what vLLM reads when it is imported, where the caller's environment does not."""
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value or cores)


def save_trio(trio: Trio, folder: Path) -> list[Path]:
    """Write base, expert and anti as folders that an engine can load, and return them."""
    folders = []
    for name, model in zip(("base", "expert", "anti"), trio.models, strict=True):
        model.save_pretrained(folder / name)
        trio.tokenizer.save_pretrained(folder / name)
        folders.append(folder / name)
    return folders


def engine_options(
    *, is_eager: bool, max_length: int, max_rows: int, num_engines: int, device: torch.device
) -> dict[str, Any]:
    """Return the engine arguments that the base alone and the composite share."""
    options: dict[str, Any] = {
        "enforce_eager": is_eager,
        "max_model_len": max_length,
        "max_num_seqs": max_rows,
        "enable_prefix_caching": False,
    }
    if device.type == "cuda":
        options["gpu_memory_utilization"] = _GPU_SHARE / num_engines
    return options


class BaseEngine:
    """The base alone, through vLLM's own `LLM`."""

    def __init__(self, folder: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
        """Start the engine."""
        from vllm import LLM

        self._llm: Any = LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            skip_tokenizer_init=True,
            generation_config="vllm",
            **options,
        )

    def decode(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Decoded:
        """Decode each prompt greedily to its number of tokens, all at once."""
        from vllm import SamplingParams

        params = [
            SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False) for count in counts
        ]
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        started = time.perf_counter()
        done = self._llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        rows = [list(output.outputs[0].token_ids) for output in done]
        return Decoded(token_ids=rows, seconds=seconds)

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()


class CompositeEngine:
    """The composite in vLLM, through the public API."""

    def __init__(self, folders: Sequence[Path], options: dict[str, Any], dtype: torch.dtype) -> None:
        """Start the engine."""
        base, expert, anti = folders
        name = str(dtype).removeprefix("torch.")
        self._generator = ProxyGenerator(base, expert, anti, dtype=name, runtime="vllm", engine_options=options)

    def decode(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Decoded:
        """Decode each prompt greedily to its number of tokens, all at once; the counts are equal."""
        started = time.perf_counter()
        done = self._generator.generate(
            [list(prompt) for prompt in prompts],
            max_new_tokens=max(counts),
            batch_size=len(prompts),
            ignore_eos=True,
        )
        seconds = time.perf_counter() - started
        return Decoded(token_ids=[list(one.token_ids) for one in done], seconds=seconds)

    def decode_ragged(self, requests: Sequence[RaggedRequest], *, in_flight: int) -> Decoded:
        """Decode requests as a server gets them: each a call of its own, `in_flight` of them at a time."""

        def one(request: RaggedRequest) -> list[int]:
            [done] = self._generator.generate(
                [list(request.prompt)], max_new_tokens=request.new_tokens, ignore_eos=True
            )
            return list(done.token_ids)

        started = time.perf_counter()
        with ThreadPoolExecutor(in_flight) as pool:
            rows = list(pool.map(one, requests))
        return Decoded(token_ids=rows, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """End the engine's processes."""
        self._generator.close()
