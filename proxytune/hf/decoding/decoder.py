"""The loop for a composite: which calls it can take, and a batch of requests through it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from proxytune.completion import Request
from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.hf.batching import strengths_of
from proxytune.hf.decoding.adapter_pass import SharedPair, shared_pairs
from proxytune.hf.decoding.answers import Answers
from proxytune.hf.decoding.attention import group_queries
from proxytune.hf.decoding.controller import Controller
from proxytune.hf.decoding.cycle import Cycle
from proxytune.hf.decoding.eligibility import why_no_own_loop
from proxytune.hf.decoding.ensemble import Ensemble
from proxytune.hf.decoding.loop import DRAFT_BURST, PLAIN_BURST, Decoded, Decoding
from proxytune.hf.decoding.rowstate import RowState
from proxytune.hf.decoding.stats import Floor, Stopwatch
from proxytune.hf.decoding.workspace import Workspaces
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.role import RoleModel
from proxytune.hf.stopping import StopFinder
from proxytune.options import GenerationOptions, LoopSettings, Speculation
from proxytune.sampling import Sampler


@dataclass(frozen=True)
class LoopDecoder:
    """Decodes batches of a composite with our own loop.

    Attributes:
        model: The composite.
        tokenizer: Reads stop texts.
        eos_token_ids: What ends a row.
        controller: Learns from batch to batch how far to draft.
        shared: Pairs that run in one pass: expert = anti + adapter.
        draft: A model that drafts in the expert's place.
        is_static: Whether a step runs over pinned slots, on CUDA as one graph; not for calls that want
            log-probabilities or stats, whose clock stops between the roles.
        workspaces: Where forwards that come again are recorded and replayed, on the CPU.
    """

    model: ProxyTunedForCausalLM
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    controller: Controller
    shared: Mapping[tuple[int, int], SharedPair] = field(default_factory=dict)
    draft: RoleModel | None = None
    is_static: bool = False
    workspaces: Workspaces | None = None

    def decode(
        self,
        batch: Sequence[Request],
        options: GenerationOptions,
        *,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
        is_cancelled: Callable[[], bool] = bool,
    ) -> Decoded:
        """Return what every request of the batch gave.

        `on_tokens` is told the tokens of a single request as they come; `is_cancelled` is asked between cycles.
        """
        # What "auto" does depends on the clock, and log-probabilities on it in their last digit: those are to repeat.
        is_exact = options.logprobs is not None and self.controller.is_automatic
        controller = Controller("off") if is_exact else self.controller
        has_hooks = any(map(_has_hooks, self._roles)) or bool(_global_forward_hooks or _global_forward_pre_hooks)
        is_static = self.is_static and options.logprobs is None and not options.stats and not has_hooks
        device = self.model.device
        started = time.perf_counter()
        stopwatch = Stopwatch(device if options.stats else None)
        role_ids = [request.role_ids for request in batch]
        sampler = Sampler(
            options,
            [request.seed for request in batch],
            [ids[0] for ids in role_ids],
            vocab_size=int(self.model.config.vocab_size or 0),
            max_positions=max(PLAIN_BURST, DRAFT_BURST * controller.max_width) if is_static else controller.max_width,
            device=device,
        )
        answers = Answers(
            [ids[0][-1] for ids in role_ids],
            StopFinder(self.tokenizer, options.stop) if options.stop else None,
            has_logprobs=options.logprobs is not None,
        )
        limits = [request.max_new_tokens for request in batch]
        ends = () if options.ignore_eos else self.eos_token_ids
        ensemble = Ensemble(
            self.model,
            role_ids,
            strengths_of(batch),
            rule=self.model.rule,
            shared=self.shared,
            draft=self.draft,
            stopwatch=stopwatch,
            ends=ends,
            is_cancelled=is_cancelled,
            workspaces=None if has_hooks else self.workspaces,
        )
        state = RowState(limits, ends, device)
        decoding = Decoding(
            cycle=Cycle(ensemble, sampler, state),
            controller=controller,
            answers=answers,
            limits=limits,
            is_static=is_static,
            device=device,
            num_logprobs=options.logprobs,
            on_tokens=on_tokens,
            is_cancelled=is_cancelled,
        )
        num_before = self._num_requests()
        decoding.run()
        ensemble.release()
        stats = None
        if options.stats:
            stats = decoding.tally.stats(
                seconds=time.perf_counter() - started,
                role_seconds=stopwatch.seconds,
                floor=Floor(self.model),
                num_requests=self._num_requests() - num_before if self.model.roles[0].is_remote else None,
            )
        masses = answers.masses if self.model.roles[0].is_remote else None
        return Decoded(answers.token_ids, answers.logprobs, decoding.first_token_at, stats, answers.errors, masses)

    @property
    def _roles(self) -> list[RoleModel]:
        return [*self.model.roles, *([] if self.draft is None else [self.draft])]

    def _num_requests(self) -> int:
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
    reasons = [reason for role in roles if (reason := why_no_own_loop(role)) is not None]
    if not reasons:
        for role in roles:
            if not role.is_remote:
                group_queries(role.model)
        pairs = shared_pairs(model.roles, model.pair_roles)
        is_static = settings.compile == "auto" and draft is None and can_be_recorded(model)
        controller = Controller(_speculation(model, settings))
        workspaces = Workspaces() if settings.compile == "auto" and can_be_replayed(roles) else None
        return LoopDecoder(model, tokenizer, eos_token_ids, controller, pairs, draft, is_static, workspaces)
    if model.roles[0].is_remote:
        raise RuntimeUnsupportedError(
            f"a base behind an API runs in our own decode loop alone, and {reasons[0]}: take another expert and anti."
        )
    if settings.is_demanded:
        raise RuntimeUnsupportedError(f"no speculation here: {reasons[0]}; leave speculation at 'auto'.")
    return None


def _speculation(model: ProxyTunedForCausalLM, settings: LoopSettings) -> Speculation:
    """Return how far to draft: by itself not at all where each place that is checked costs a request of its own."""
    is_dear = model.roles[0].is_remote and model.base.remote.verification == "single"
    return "off" if is_dear and settings.speculation == "auto" else settings.speculation


def can_be_recorded(model: ProxyTunedForCausalLM) -> bool:
    """Return whether a step of these roles can be one CUDA graph: one device for all, nothing quantised."""
    if model.device.type != "cuda" or model.roles[0].is_remote:
        return False
    return all(role.device == model.device and not _is_quantised(role) for role in model.roles)


def can_be_replayed(roles: Sequence[RoleModel]) -> bool:
    """Return whether forwards of these roles can be recorded on the CPU: nothing quantised, no role elsewhere."""
    return all(role.is_remote or (role.device.type == "cpu" and not _is_quantised(role)) for role in roles)


def _is_quantised(role: RoleModel) -> bool:
    return bool(getattr(role.model, "is_quantized", False))


def _has_hooks(role: RoleModel) -> bool:
    """Return whether Python waits in a role's modules to be called at every forward, which a recording leaves out."""
    return not role.is_remote and any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
        for module in role.model.modules()
    )


def require_no_demand(settings: LoopSettings, options: GenerationOptions) -> None:
    """Raise OptionError if a call needs what only transformers' generate does, while drafts were asked for."""
    if settings.is_demanded and options.num_beams > 1:
        raise OptionError(
            f"num_beams={options.num_beams} with speculation={settings.speculation!r}: beams are not speculated on; "
            "leave speculation at 'auto'."
        )
