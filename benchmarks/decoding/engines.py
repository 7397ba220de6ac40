"""vLLM's variants: the base alone in an engine of its own, and the composite through ProxyGenerator.

Engines stay up and idle while others have their turn. Prefix caching is off, since every round reads the same prompts.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding.naive import Decoded
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.variants import Options, Variant, VariantError, decode, save_trio
from benchmarks.decoding.workloads import Requests
from proxytune import ProxyGenerator

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, of each engine
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",  # all cores, where vLLM would keep one back
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
}
_GPU_SHARE = 0.9


def engine_variant(name: str, trio: Trio, options: Options, num_engines: int) -> Variant:
    """Return a variant with an engine that runs until it is closed.

    Raises:
        VariantError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise VariantError(f"variant {name!r} needs vLLM, which is not installed: name the other variants.")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    settings = engine_options(
        is_eager=not name.endswith("_compiled"), options=options, num_engines=num_engines, device=trio.base.device
    )
    root = tempfile.TemporaryDirectory(prefix="proxytune-bench-")
    folders = save_trio(trio, Path(root.name))
    is_base = name.startswith("vllm_base")
    dtype = str(trio.base.dtype).removeprefix("torch.")
    engine: Any = (_BaseEngine if is_base else _CompositeEngine)(folders, dtype, settings)

    def close() -> None:
        engine.close()
        root.cleanup()

    role: Any = "base" if is_base else "trio"
    return Variant(
        name=name,
        run=engine.run,
        reads=role,
        tokens_of=role,
        reference="vllm_base_compiled" if name.endswith("_compiled") else "vllm_base",
        takes_ragged=True,
        close=close,
    )


def engine_options(*, is_eager: bool, options: Options, num_engines: int, device: torch.device) -> dict[str, Any]:
    """Return the engine arguments that the base alone and the composite share; a GPU's memory is shared out."""
    settings: dict[str, Any] = {
        "enforce_eager": is_eager,
        "max_model_len": options.max_len,
        "max_num_seqs": options.max_rows,
        "enable_prefix_caching": False,
    }
    if device.type == "cuda":
        settings["gpu_memory_utilization"] = _GPU_SHARE / num_engines
    return settings


class _BaseEngine:
    """The base alone, through vLLM's own `LLM`."""

    def __init__(self, folders: list[Path], dtype: str, settings: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm: Any = LLM(
            model=str(folders[0]), dtype=dtype, skip_tokenizer_init=True, generation_config="vllm", **settings
        )

    def run(self, requests: Requests) -> Decoded:
        """Decode all rows greedily at once, each to its own count."""
        from vllm import SamplingParams

        params = [
            SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False)
            for count in requests.counts
        ]
        given = [{"prompt_token_ids": list(prompt)} for prompt in requests.prompts]
        started = time.perf_counter()
        done = self._llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return Decoded(token_ids=[list(output.outputs[0].token_ids) for output in done], seconds=seconds)

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()


class _CompositeEngine:
    """The composite in vLLM, through the public API."""

    def __init__(self, folders: list[Path], dtype: str, settings: dict[str, Any]) -> None:
        base, expert, anti = folders
        self._generator = ProxyGenerator(base, expert, anti, dtype=dtype, runtime="vllm", engine_options=settings)

    def run(self, requests: Requests) -> Decoded:
        """Decode equal rows in one call, and ragged ones as a server gets them, `batch` calls at a time."""
        if not requests.is_ragged:
            done = decode(self._generator, requests)
            return Decoded(token_ids=done.token_ids, seconds=done.seconds)

        def one(row: int) -> list[int]:
            [done] = self._generator.generate(
                [list(requests.prompts[row])], max_new_tokens=requests.counts[row], ignore_eos=True
            )
            return list(done.token_ids)

        started = time.perf_counter()
        with ThreadPoolExecutor(requests.batch) as pool:
            rows = list(pool.map(one, range(len(requests.prompts))))
        return Decoded(token_ids=rows, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """End the engine's processes."""
        self._generator.close()
