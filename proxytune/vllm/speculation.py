"""Draft-model speculation: the expert proposes tokens, the composite verifies them all in one step.

vLLM's greedy verification accepts a token only where it is the composite's own choice, so tokens are those of plain
decoding. Its engine takes no logits processors beside speculation, and α per request and our seeded draws are such:
both are refused rather than ignored.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxytune.completion import Request
from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.options import GenerationOptions

OPTION = "speculative_config"
METHOD = "draft_model"

_WAY_OUT = f'leave {OPTION} out of engine_options, or take runtime="hf".'


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Number of tokens proposed since the engine started, and of those that the composite took."""

    num_drafted: int
    num_accepted: int

    @classmethod
    def of(cls, metrics: Iterable[Any]) -> "Acceptance":
        """Return the counts among an engine's metrics."""
        counts = {metric.name: metric.value for metric in metrics if hasattr(metric, "value")}
        return cls(
            num_drafted=int(counts.get("vllm:spec_decode_num_draft_tokens", 0)),
            num_accepted=int(counts.get("vllm:spec_decode_num_accepted_tokens", 0)),
        )

    @property
    def rate(self) -> float:
        """Accepted tokens per proposed one; 0 before the first."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0


def speculative_config(given: Mapping[str, Any], *, base: Any, expert: Any) -> dict[str, Any]:
    """Return vLLM's `speculative_config`, with the expert (a `VllmRole`, as is `base`) as the draft when none is named.

    Raises:
        OptionError: It does not say how many tokens to propose.
        RuntimeUnsupportedError: Another method, or an expert whose vocabulary is of another width than the base's.
    """
    if not isinstance(given, Mapping):
        raise OptionError(f'{OPTION} is {given!r}: pass a dict, {{"num_speculative_tokens": 3}} for instance.')
    method = given.get("method", METHOD)
    if method != METHOD:
        raise RuntimeUnsupportedError(f"{OPTION} names method {method!r}, and a composite takes {METHOD!r}: {_WAY_OUT}")
    number = given.get("num_speculative_tokens")
    if type(number) is not int or number < 1:
        raise OptionError(f"num_speculative_tokens of {OPTION} is {number!r}: pass a whole number from 1 on.")
    if given.get("model") is not None:
        return {**given, "method": METHOD}
    if expert.logits_width != base.logits_width:
        raise RuntimeUnsupportedError(
            f"vLLM's drafts need logits of one width, and the expert's are {expert.logits_width} wide, the base's "
            f"{base.logits_width}: name another model in {OPTION}, or leave it out."
        )
    return {**given, "method": METHOD, "model": expert.plan.model, "revision": expert.plan.revision}


def require_verifiable(request: Request, options: GenerationOptions | None, alphas: tuple[float, ...]) -> None:
    """Raise RuntimeUnsupportedError for what an engine that speculates would do differently from what was asked.

    `alphas` are the configured strengths; `options` is None where a row is only scored.
    """
    if tuple(request.alphas) != tuple(alphas):
        raise RuntimeUnsupportedError(
            f"row {request.index} asks for alpha {list(request.alphas)}, and with speculation every row has the "
            f"configured {list(alphas)}: {_WAY_OUT}"
        )
    if options is not None and options.is_sampled:
        raise RuntimeUnsupportedError(
            f"temperature={options.temperature}: with speculation only greedy rows are the hf runtime's: {_WAY_OUT}"
        )
