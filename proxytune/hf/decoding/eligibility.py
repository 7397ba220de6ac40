"""What the loop is proved for: architectures, attention, positions. All else goes through transformers' generate."""

from typing import Any

from proxytune.hf.decoding.attention import GROUPED
from proxytune.hf.role import RoleModel

# Each is tested against transformers' generate, speculation and sliding windows included.
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox", "gemma2"})
_ATTENTION = frozenset({"sdpa", "eager", GROUPED})
# Their frequencies depend on how far the longest row of a forward has come, so not on the row alone.
_MOVING_ROPE = frozenset({"dynamic", "longrope"})


def why_no_own_loop(role: RoleModel) -> str | None:
    """Return why a role cannot run in our loop, None if it can."""
    if role.is_remote:
        return None
    config = role.config
    if config.model_type not in ARCHITECTURES:
        return f"{role.name} is a {config.model_type}, and the loop is proved for {', '.join(sorted(ARCHITECTURES))}"
    if config._attn_implementation not in _ATTENTION:
        return f"{role.name} uses {config._attn_implementation} attention, and the loop needs sdpa or eager"
    if _rope_types(config) & _MOVING_ROPE:
        return f"{role.name} has positions that depend on the length of the batch"
    if getattr(config, "add_cross_attention", False):
        return f"{role.name} has cross-attention"
    return None


def _rope_types(config: Any) -> set[str]:
    """Return the rope types of all layers; configs hold one set of parameters, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(entry.get("rope_type", "default")) for entry in nested or [parameters]}
