"""What of vLLM's options and of this machine decides how much cache its engine gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.cli.machine import Memory
from proxytune.errors import OptionError

CPU_SPACE = "VLLM_CPU_KVCACHE_SPACE"  # GiB for the cache of each worker on a CPU

# vLLM 0.32's own defaults: CacheConfig, and the CPU platform's block size.
_GPU_BLOCK_SIZE = 16
_CPU_BLOCK_SIZE = 128
_UTILIZATION = 0.92


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of an engine, its defaults filled in.

    Attributes:
        device: `cpu` or `cuda`.
        block_size: Tokens of cache that are given out at a time.
        memory_utilization: The part of a device's memory that a worker takes, cache and weights together.
        cache_bytes: For the cache of one worker, where it was said outright; None if it is what the weights leave.
        tensor_parallel_size: Workers that share each layer.
        pipeline_parallel_size: Groups of workers that each have a part of the layers.
        max_model_len: Longest request, None if it was not said.
        has_small_cache: Whether the cache is kept in 8 bits.
        num_blocks: Of the cache, where that was said.
    """

    device: str
    block_size: int
    memory_utilization: float
    cache_bytes: int | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_model_len: int | None
    has_small_cache: bool
    num_blocks: int | None

    @property
    def num_workers(self) -> int:
        """Processes, each with a device of its own on GPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @classmethod
    def of(
        cls, options: Mapping[str, Any], machine: Sequence[Memory], environment: Mapping[str, str]
    ) -> "EngineSettings":
        """Return the settings that `engine_options` and the environment make on this machine.

        Raises:
            OptionError: One is out of range.
        """
        is_cpu = not any(memory.place.startswith("cuda") for memory in machine)
        space = environment.get(CPU_SPACE) if is_cpu else None
        explicit = _whole(options, "kv_cache_memory_bytes", None)
        if space:
            if not space.isdecimal():
                raise OptionError(f"{CPU_SPACE} is {space!r}: it must be a whole number of GiB.")
            explicit = int(space) * 2**30
        limit = options.get("max_model_len")
        return cls(
            device="cpu" if is_cpu else "cuda",
            block_size=_whole(options, "block_size", _CPU_BLOCK_SIZE if is_cpu else _GPU_BLOCK_SIZE) or 1,
            memory_utilization=_utilization(options),
            cache_bytes=explicit,
            tensor_parallel_size=_whole(options, "tensor_parallel_size", 1) or 1,
            pipeline_parallel_size=_whole(options, "pipeline_parallel_size", 1) or 1,
            max_model_len=None if limit in (None, -1) else _whole(options, "max_model_len", None),
            has_small_cache=_is_small(options.get("kv_cache_dtype", "auto")),
            num_blocks=_whole(options, "num_gpu_blocks_override", None),
        )


def _whole(options: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = options.get(name)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise OptionError(f"{name} is {value!r}: it must be a whole number of at least 1.")
    return value


def _utilization(options: Mapping[str, Any]) -> float:
    value = options.get("gpu_memory_utilization", _UTILIZATION)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise OptionError(f"gpu_memory_utilization is {value!r}: it must be a number above 0 and at most 1.")
    return float(value)


def _is_small(name: Any) -> bool:
    """Return whether a cache dtype has 8 bits."""
    if name in ("auto", "bfloat16", "float16"):
        return False
    if isinstance(name, str) and name.startswith("fp8"):
        return True
    raise OptionError(f"kv_cache_dtype is {name!r}: doctor can plan auto, float16, bfloat16 and the fp8 kinds.")
