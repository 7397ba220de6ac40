"""The variants of the throughput benchmark: engines that stay up, and loops in this process."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.decoding.engines import BaseEngine, CompositeEngine, engine_options, save_trio
from benchmarks.decoding.naive import Decoded, lean_loop, naive_loop
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.variants import VariantError, decode
from benchmarks.decoding.workloads import RaggedRequest
from proxytune import ProxyGenerator

Call = Callable[[], Decoded]

NAIVE, HF, HF_BASE = "naive", "hf", "hf_base"
# Each variant's ratio is to the base alone under the same conditions.
REFERENCES = {
    "vllm_base_eager": "vllm_base_eager",
    "vllm_eager": "vllm_base_eager",
    "vllm_base_compiled": "vllm_base_compiled",
    "vllm_compiled": "vllm_base_compiled",
    HF_BASE: HF_BASE,
    HF: HF_BASE,
    NAIVE: HF_BASE,
}
NAIVE_BATCH = 32
_IN_VLLM = "vllm_"
_EAGER = "_eager"


def is_base(name: str) -> bool:
    """Return whether a variant is the base alone."""
    return REFERENCES[name] == name


class Contestants:
    """Everything that decodes, ready to run."""

    def __init__(self, trio: Trio, names: Sequence[str], engines: Mapping[str, BaseEngine | CompositeEngine]) -> None:
        """Take the models and the engines that run already; see `started`."""
        self.trio = trio
        self.names = [name for name in REFERENCES if name in names]
        self._engines = engines
        self._hf = ProxyGenerator(*trio.models, tokenizer=trio.tokenizer) if HF in names else None

    def equal_rows(self, prompts: list[list[int]], count: int) -> dict[str, Call]:
        """Return a call per variant that decodes these prompts, of one length, to `count` tokens each."""
        return {name: self._equal_call(name, prompts, count) for name in self.names}

    def ragged(self, requests: Sequence[RaggedRequest], *, in_flight: int) -> dict[str, Call]:
        """Return a call per variant that has to do with ragged requests: engines, and the naive loop in batches."""
        found: dict[str, Call] = {}
        for name, engine in self._engines.items():
            found[name] = self._ragged_call(engine, requests, in_flight)
        if NAIVE in self.names:
            found[NAIVE] = lambda: naive_batches(self.trio, requests)
        return found

    def _equal_call(self, name: str, prompts: list[list[int]], count: int) -> Call:
        trio = self.trio
        if name == NAIVE:
            return lambda: naive_loop(trio.models, prompts, max_new_tokens=count, pad_token_id=0)
        if name == HF_BASE:
            return lambda: lean_loop(trio.base, prompts, max_new_tokens=count)
        if self._hf is not None and name == HF:
            generator = self._hf
            return lambda: decode(generator, prompts, count)
        return lambda: self._engines[name].decode(prompts, [count] * len(prompts))

    @staticmethod
    def _ragged_call(engine: BaseEngine | CompositeEngine, requests: Sequence[RaggedRequest], in_flight: int) -> Call:
        if isinstance(engine, CompositeEngine):
            return lambda: engine.decode_ragged(requests, in_flight=in_flight)
        prompts, counts = [one.prompt for one in requests], [one.new_tokens for one in requests]
        return lambda: engine.decode(prompts, counts)


@contextmanager
def started(trio: Trio, names: Sequence[str], *, max_length: int, max_rows: int) -> Iterator[Contestants]:
    """Start one engine for each variant that needs one; end them all afterwards.

    Raises:
        VariantError: A name is unknown, or vLLM is not installed.
    """
    unknown = [name for name in names if name not in REFERENCES]
    if unknown:
        raise VariantError(f"variant {unknown[0]!r} is unknown: take some of {', '.join(REFERENCES)}.")
    in_vllm = [name for name in REFERENCES if name in names and name.startswith(_IN_VLLM)]
    if in_vllm and find_spec("vllm") is None:
        raise VariantError(f"{', '.join(in_vllm)} need vLLM, which is not installed: pass --variants {HF} {NAIVE}.")
    engines: dict[str, BaseEngine | CompositeEngine] = {}
    with tempfile.TemporaryDirectory(prefix="proxytune-bench-") as root, ExitStack() as stack:
        folders = save_trio(trio, Path(root)) if in_vllm else []
        for name in in_vllm:
            options = engine_options(
                is_eager=name.endswith(_EAGER),
                max_length=max_length,
                max_rows=max_rows,
                num_engines=len(in_vllm),
                device=trio.base.device,
            )
            engine: BaseEngine | CompositeEngine
            if is_base(name):
                engine = BaseEngine(folders[0], options, trio.base.dtype)
            else:
                engine = CompositeEngine(folders, options, trio.base.dtype)
            stack.callback(engine.close)
            engines[name] = engine
        yield Contestants(trio, names, engines)


def naive_batches(trio: Trio, requests: Sequence[RaggedRequest], *, batch: int = NAIVE_BATCH) -> Decoded:
    """Decode ragged requests in batches, in their order, each to its longest row; what was not asked for is dropped."""
    rows: list[list[int]] = []
    started_at = time.perf_counter()
    for first in range(0, len(requests), batch):
        part = requests[first : first + batch]
        done = naive_loop(
            trio.models,
            [one.prompt for one in part],
            max_new_tokens=max(one.new_tokens for one in part),
            pad_token_id=0,
        )
        rows += [row[: one.new_tokens] for row, one in zip(done.token_ids, part, strict=True)]
    return Decoded(token_ids=rows, seconds=time.perf_counter() - started_at)
