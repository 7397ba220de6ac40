"""Decoder of a composite by our own loop: which roles it can run, and a batch of requests through it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxytune.completion import Request
from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.hf.batching import strengths_of
from proxytune.hf.decoding.attention import attention_kernels, group_queries
from proxytune.hf.decoding.batch_state import BatchState, GenerationOutputs
from proxytune.hf.decoding.cuda_graph import CudaGraphs
from proxytune.hf.decoding.loop import DecodeLoop
from proxytune.hf.decoding.role_group import RoleGroup
from proxytune.hf.decoding.runners import SharedPair, shared_pairs
from proxytune.hf.decoding.speculation import SpeculationPolicy
from proxytune.hf.decoding.stats import Stopwatch
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.probing import unsupported_reason
from proxytune.hf.role import RoleModel
from proxytune.hf.stopping import StopFinder
from proxytune.options import GenerationOptions, LoopSettings, Speculation
from proxytune.sampling import Sampler


@dataclass(frozen=True)
class LoopDecoder:
    """Decodes batches of a composite with our own loop.

    Attributes:
        model: The composite.
        tokenizer: Decodes stop texts.
        eos_token_ids: Ids that end a row.
        policy: Learns from batch to batch how far to draft.
        shared: Pairs that run in one forward: expert = anti + adapter.
        draft: A model that drafts in the expert's place.
        graphs: Captures forwards on CUDA; None to run them eagerly.
    """

    model: ProxyTunedForCausalLM
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    policy: SpeculationPolicy
    shared: Mapping[tuple[int, int], SharedPair] = field(default_factory=dict)
    draft: RoleModel | None = None
    graphs: CudaGraphs | None = None

    def decode(
        self,
        batch: Sequence[Request],
        options: GenerationOptions,
        *,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
        is_cancelled: Callable[[], bool] = bool,
    ) -> GenerationOutputs:
        """Return the outputs of every request of the batch.

        `on_tokens` is called with the tokens of a single request as they come; `is_cancelled` between steps.

        Raises:
            NonFiniteLogitsError: A role's logits are NaN or infinite where a token was chosen.
        """
        # What "auto" does depends on the clock, and log-probabilities on it in their last digit: those are to repeat.
        is_exact = options.logprobs is not None and self.policy.is_automatic
        policy = SpeculationPolicy("off") if is_exact else self.policy
        device = self.model.device
        started = time.perf_counter()
        stopwatch = Stopwatch(device if options.stats else None)
        role_ids = [request.role_ids for request in batch]
        eos_token_ids = options.end_ids(self.eos_token_ids)
        roles = RoleGroup(
            self.model,
            role_ids,
            strengths_of(batch),
            rule=self.model.rule,
            shared=self.shared,
            draft=self.draft,
            stopwatch=stopwatch,
            eos_token_ids=eos_token_ids,
            is_cancelled=is_cancelled,
            graphs=self.graphs,
            max_new_tokens=max(request.max_new_tokens for request in batch) + policy.max_draft_tokens,
        )
        sampler = Sampler(
            options,
            [request.seed for request in batch],
            [ids[0] for ids in role_ids],
            vocab_size=int(self.model.config.vocab_size or 0),
            max_positions=policy.max_draft_tokens + 1,
            device=device,
        )
        state = BatchState(
            [request.max_new_tokens for request in batch],
            [ids[0][-1] for ids in role_ids],
            eos_token_ids=eos_token_ids,
            stop=StopFinder(self.tokenizer, options.stop) if options.stop else None,
            has_logprobs=options.logprobs is not None,
        )
        loop = DecodeLoop(
            roles,
            sampler,
            state,
            policy,
            batch,
            device,
            num_logprobs=options.logprobs,
            on_tokens=on_tokens,
            is_cancelled=is_cancelled,
        )
        num_before = self._num_remote_requests()
        with attention_kernels(device):
            loop.run()
        roles.release()
        stats = None
        if options.stats:
            is_remote = self.model.roles[0].is_remote
            stats = loop.counters.stats(
                self.model,
                seconds=time.perf_counter() - started,
                role_seconds=stopwatch.seconds,
                num_requests=self._num_remote_requests() - num_before if is_remote else None,
            )
        masses = state.masses if self.model.roles[0].is_remote else None
        return GenerationOutputs(state.token_ids, state.logprobs, loop.first_token_at, stats, state.errors, masses)

    def _num_remote_requests(self) -> int:
        """Return how many requests a base behind an API has had so far."""
        return int(self.model.base.remote.usage.num_requests) if self.model.roles[0].is_remote else 0


def new_decoder(
    model: ProxyTunedForCausalLM,
    tokenizer: Any,
    eos_token_ids: tuple[int, ...],
    settings: LoopSettings,
    draft: RoleModel | None,
) -> LoopDecoder | None:
    """Return the loop for a composite, None where its roles must go through transformers' generate.

    Raises:
        RuntimeUnsupportedError: The loop cannot run these roles, and nothing else can: the base is behind an API, or a
            number of drafts or a draft model was asked for.
    """
    roles = list(model.roles) if draft is None else [*model.roles, draft]
    reasons = [reason for role in roles if (reason := unsupported_reason(role)) is not None]
    if not reasons:
        for role in roles:
            if not role.is_remote:
                group_queries(role.model)
        pairs = shared_pairs(model.roles, model.pair_roles)
        policy = SpeculationPolicy(_speculation(model, settings))
        graphs = CudaGraphs() if uses_graphs(roles, settings) else None
        return LoopDecoder(model, tokenizer, eos_token_ids, policy, pairs, draft, graphs)
    if model.roles[0].is_remote:
        raise RuntimeUnsupportedError(
            f"a base behind an API runs in our own decode loop alone, and {reasons[0]}: take another expert and anti."
        )
    if settings.is_demanded:
        raise RuntimeUnsupportedError(f"no speculation here: {reasons[0]}; leave speculation at 'auto'.")
    return None


def uses_graphs(roles: Sequence[RoleModel], settings: LoopSettings) -> bool:
    """Return whether forwards may be captured: a role is on a CUDA device, and nobody turned it off."""
    return settings.compile == "auto" and any(not role.is_remote and role.device.type == "cuda" for role in roles)


def _speculation(model: ProxyTunedForCausalLM, settings: LoopSettings) -> Speculation:
    """Return how far to draft: by itself not at all where each position to check costs a request of its own."""
    is_dear = model.roles[0].is_remote and model.base.remote.verification == "single"
    return "off" if is_dear and settings.speculation == "auto" else settings.speculation


def require_no_demand(settings: LoopSettings, options: GenerationOptions) -> None:
    """Raise OptionError if a call needs what only transformers' generate does, while drafts were asked for."""
    if settings.is_demanded and options.num_beams > 1:
        raise OptionError(
            f"num_beams={options.num_beams} with speculation={settings.speculation!r}: beams are not speculated on; "
            "leave speculation at 'auto'."
        )
