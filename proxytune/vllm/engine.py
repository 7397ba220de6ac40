"""One vLLM engine, stepped by whoever waits for tokens: several callers can have requests in it at once."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from vllm import EngineArgs, LLMEngine

from proxytune.errors import OptionError, ProxyTuneError, RuntimeUnsupportedError, UnknownOptionError
from proxytune.vllm import compat
from proxytune.vllm.alpha import processor_name
from proxytune.vllm.composite import VllmComposite
from proxytune.vllm.plugin import register
from proxytune.vllm.role_prompts import RolePrompts, private
from proxytune.vllm.speculation import OPTION, speculative_config

_OWN = ("model", "hf_overrides", "logits_processors", "skip_tokenizer_init", "dtype", "max_logprobs", "revision")


class Engine:
    """Runs token ids through a composite; text is not its business."""

    def __init__(self, composite: VllmComposite) -> None:
        """Start the engine: seconds for a small composite, minutes for a large or compiled one."""
        compat.require_plugin()
        register()
        compat.choose_runner()
        self._engine = _started(engine_arguments(composite))
        self._shared_pairs = composite.plan().shared_pairs
        self.max_length: int = self._engine.model_config.max_model_len
        self.marks = composite.marks()
        self._numbers = itertools.count()
        self._waiting: dict[str, deque[Any]] = {}
        self._lock = threading.Lock()

    def add(self, prompts: RolePrompts, params: Any) -> str:
        """Return the id of a new request.

        Raises:
            RuntimeUnsupportedError: Its prompts differ, and this engine cannot keep them apart.
        """
        name = str(next(self._numbers))
        cache_salt = None
        if not prompts.are_equal:
            compat.require_role_prompts(self._engine.vllm_config)
            self._require_separate(prompts)
            params.extra_args = {**(params.extra_args or {}), **prompts.arguments()}
            cache_salt = private(params)
        with self._lock:
            self._engine.add_request(name, compat.tokens(prompts.sequence(), cache_salt), params)
            self._waiting[name] = deque()
        return name

    def _require_separate(self, prompts: RolePrompts) -> None:
        """Raise RuntimeUnsupportedError where roles that run on the same weights read different prompts."""
        for expert, anti in self._shared_pairs:
            if prompts.role_ids[expert] != prompts.role_ids[anti]:
                raise RuntimeUnsupportedError(
                    "an adapter and its anti share their weights and read different prompts: set "
                    'additional_config={"proxytune_share_adapters": False} in engine_options, or take runtime="hf".'
                )

    def outputs(self, names: set[str]) -> Iterator[tuple[str, Any]]:
        """Yield each output of these requests, in the order of their coming, after one step or less."""
        with self._lock:
            if not any(self._waiting[name] for name in names):
                for output in self._engine.step():
                    if output.request_id in self._waiting:
                        self._waiting[output.request_id].append(output)
            ready = [(name, self._waiting[name].popleft()) for name in names for _ in range(len(self._waiting[name]))]
        yield from ready

    def drop(self, name: str) -> None:
        """Forget a request, ending it if it still runs."""
        with self._lock:
            if self._waiting.pop(name, None) is not None:
                self._engine.abort_request([name])

    def metrics(self) -> list[Any]:
        """Return vLLM's counters."""
        with self._lock:
            return list(self._engine.get_metrics())

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.engine_core.shutdown()


def _started(arguments: dict[str, Any]) -> Any:
    """Return the running engine; raise what is wrong with its settings before it takes any memory.

    Raises:
        UnknownOptionError: An engine argument that vLLM does not have.
        RuntimeUnsupportedError: Settings that do not go with a composite, or vLLM could not start.
    """
    try:
        engine_args = EngineArgs(**arguments)
    except TypeError as error:
        raise UnknownOptionError(f"engine_options: vLLM's EngineArgs refuses them ({error}).") from error
    try:
        config = engine_args.create_engine_config()
        compat.require_supported_engine(config)
        return LLMEngine.from_vllm_config(config, disable_log_stats=engine_args.disable_log_stats)
    except ProxyTuneError:
        raise
    except (ValueError, RuntimeError) as error:
        raise RuntimeUnsupportedError(
            f"vLLM did not start ({' '.join(str(error).split())[:300]}); its log says why: change engine_options, or "
            'take runtime="hf".'
        ) from error


def engine_arguments(composite: VllmComposite) -> dict[str, Any]:
    """Return vLLM's `EngineArgs` for a composite.

    Raises:
        OptionError: `engine_options` sets what the composite sets.
    """
    options: Mapping[str, Any] = composite.engine_options
    for name in _OWN:
        if name in options:
            raise OptionError(f"engine_options sets {name!r}, which the composite sets itself: leave it out.")
    plan, marks = composite.plan(), composite.marks()
    base = plan.roles[0]
    processors = [processor_name(len(plan.pairs)), "proxytune.vllm.seeded_sampling:SeededSampling"]
    if composite.is_speculative:
        # vLLM refuses to speculate beside logits processors; how much it accepts stands in its statistics.
        processors = []
        expert = composite.roles[composite.pair_roles[0][0]]
        drafts = speculative_config(options[OPTION], base=composite.roles[0], expert=expert)
        options = {"disable_log_stats": False, **options, OPTION: drafts}
    return {
        "max_model_len": composite.config.max_position_embeddings,
        "disable_log_stats": True,
        **options,
        **compat.device_settings(options),
        "model": base.model,
        "revision": base.revision,
        "hf_overrides": plan.overrides() | ({} if marks is None else marks.overrides()),
        "dtype": str(composite.dtype).removeprefix("torch."),
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "max_logprobs": -1,
        "logits_processors": processors,
    }
