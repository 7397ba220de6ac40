"""Description of a composite for the engine's processes; it travels inside the base's config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxytune.errors import OptionError, RoleError, RuntimeUnsupportedError
from proxytune.options import pair_alphas
from proxytune.rules import DEFAULT, rule_of

ARCHITECTURE = "ProxyTunedForCausalLM"  # under which vLLM knows the composite
CONFIG_KEY = "proxytune"
ALPHA_KEY = "alpha"

# Decoders whose layers all attend to everything before them, each compared with the hf runtime by tests.
SUPPORTED = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_MAX_ALPHA = 65504.0  # α passes through hidden states, which may be float16


@dataclass(frozen=True, kw_only=True)
class RolePlan:
    """One model to load: a folder or hub id, or an adapter over the role that `adapter_of` names."""

    name: str
    model: str
    revision: str | None = None
    adapter_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A composite as plain data.

    Attributes:
        roles: Every distinct model, base first.
        pairs: For each pair the indices of its expert and its anti in `roles`, None for an anti that is none.
        alphas: The configured strength of each pair.
        vocab_size: Number of ids all roles share; None for the narrowest role's.
        rule: Text of the rule that combines their logits.
    """

    roles: tuple[RolePlan, ...]
    pairs: tuple[tuple[int, int | None], ...]
    alphas: tuple[float, ...]
    vocab_size: int | None = None
    rule: str = DEFAULT

    def __post_init__(self) -> None:
        rule_of(self.rule)

    @property
    def models(self) -> tuple[RolePlan, ...]:
        """Roles with weights of their own, base first."""
        return tuple(role for role in self.roles if role.adapter_of is None)

    def adapters_of(self, name: str) -> tuple[RolePlan, ...]:
        """Return the experts that share the weights of a role."""
        return tuple(role for role in self.roles if role.adapter_of == name)

    @property
    def shared_pairs(self) -> tuple[tuple[int, int], ...]:
        """Indices in `roles` of each adapter and of the role whose weights it shares."""
        names = [role.name for role in self.roles]
        return tuple(
            (index, names.index(role.adapter_of))
            for index, role in enumerate(self.roles)
            if role.adapter_of is not None
        )

    def overrides(self) -> dict[str, Any]:
        """Return vLLM's `hf_overrides` that make the base's config the composite's."""
        entry = {
            "roles": [vars(role) for role in self.roles],
            "pairs": [list(pair) for pair in self.pairs],
            "alphas": list(self.alphas),
            "vocab_size": self.vocab_size,
            "rule": self.rule,
        }
        return {"architectures": [ARCHITECTURE], CONFIG_KEY: entry}

    @classmethod
    def of(cls, hf_config: Any) -> "Plan":
        """Return the plan that `overrides` wrote into a config.

        Raises:
            RoleError: The config has none.
        """
        entry = getattr(hf_config, CONFIG_KEY, None)
        if not isinstance(entry, Mapping):
            raise RoleError(
                f"this model's config has no {CONFIG_KEY!r} entry, so it is no composite: "
                'start it with ProxyGenerator(..., runtime="vllm").'
            )
        return cls(
            roles=tuple(RolePlan(**role) for role in entry["roles"]),
            pairs=tuple((int(expert), None if anti is None else int(anti)) for expert, anti in entry["pairs"]),
            alphas=pair_alphas(entry["alphas"], len(entry["pairs"])),
            vocab_size=entry["vocab_size"],
            rule=entry["rule"],
        )

    def alphas_of(self, extra_args: Mapping[str, Any] | None) -> tuple[float, ...]:
        """Return a request's strengths, from its `extra_args`: a number, one per pair, or the configured ones.

        Raises:
            OptionError: They are no finite numbers, or not one per pair.
        """
        given = request_alphas(extra_args, len(self.pairs))
        return self.alphas if given is None else given


def request_alphas(extra_args: Mapping[str, Any] | None, num_pairs: int) -> tuple[float, ...] | None:
    """Return the strength of each pair that a request asks for, by one number or one per pair; None for none.

    Raises:
        OptionError: They are no finite numbers, or a list that is not `num_pairs` long.
    """
    given = (extra_args or {}).get(ALPHA_KEY)
    return None if given is None else check_alphas(pair_alphas(given, num_pairs))


def check_alphas(alphas: tuple[float, ...]) -> tuple[float, ...]:
    """Return the strengths; raise OptionError for one that float16 cannot hold."""
    for alpha in alphas:
        if abs(alpha) > _MAX_ALPHA:
            raise OptionError(f"alpha is {alpha!r}: the vllm runtime takes at most {_MAX_ALPHA:g} either way.")
    return alphas


def require_splittable(config: Any, name: str, tensor_parallel_size: int) -> None:
    """Raise RuntimeUnsupportedError unless a role's attention heads can be split over that many ranks."""
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    size = tensor_parallel_size
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise RuntimeUnsupportedError(
            f"{name} has {num_heads} attention heads ({num_kv_heads} of keys), which tensor_parallel_size={size} "
            "does not divide: take one that divides those of all roles, and pipeline_parallel_size for the other GPUs."
        )


def require_supported(config: Any, name: str) -> None:
    """Raise RuntimeUnsupportedError unless a role's config is of a decoder the vLLM composite runs."""
    [architecture, *_] = getattr(config, "architectures", None) or ["unknown"]
    if architecture not in SUPPORTED:
        raise RuntimeUnsupportedError(
            f"{name} is a {architecture}, and the vllm runtime runs {', '.join(SUPPORTED)}: "
            'take runtime="hf" for this one.'
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_windowed = kinds != {"full_attention"}
    if not getattr(config, "layer_types", None):
        is_windowed = bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)
    if is_windowed:
        raise RuntimeUnsupportedError(
            f"{name} attends through a sliding window, which the vllm runtime does not combine: "
            'take runtime="hf" for this one.'
        )
