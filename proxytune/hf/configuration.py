"""The proxy folder's config.json: which models, how strong, in which prompt formats; it holds no weights."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from proxytune.options import pair_alphas
from proxytune.roles import BASE
from proxytune.rules import DEFAULT


class ProxyTunedConfig(PreTrainedConfig):
    """Roles, strengths, rule and prompt formats of a composite.

    Attributes:
        base: The base role: `{"source": hub id or folder}`, and optionally dtype, quantization, revision; behind an API
            `{"source": "openai:<model>", "remote": settings}`.
        pairs: One entry per pair: `{"expert": role, "anti": role, "alpha": number}`, and optionally `expert_prompt` and
            `anti_prompt` overriding the formats below. Either may be `"base"`, and an anti `"none"`.
        rule: Text of the rule that combines their logits, as `proxytune.rules.rule_of` reads it.
        base_prompt: Prompt format of the base.
        expert_prompt: Prompt format of the experts.
        anti_prompt: Prompt format of the antis.
        vocab_size: Number of token ids all roles share; logits are cut to it. None until the roles are loaded.
        max_position_embeddings: Context of the shortest role, None if no role states one.
        num_hidden_layers: Layers of all roles together.
        hidden_size: Width of the base.
        path_mark: As in `proxytune.own_paths.path_mark`; None where all roles are in or beside the folder.
    """

    model_type = "proxytune"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' own name and form

    base: dict[str, Any] | None = None
    pairs: list[dict[str, Any]] | None = None
    rule: str = DEFAULT
    base_prompt: str = "raw"
    expert_prompt: str = "raw"
    anti_prompt: str = "raw"
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    path_mark: str | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Register the composite with AutoModelForCausalLM, by name: its module imports this one."""
        super().__post_init__(**kwargs)
        from transformers import AutoModelForCausalLM

        model = import_module("proxytune.hf.modeling").ProxyTunedForCausalLM
        AutoModelForCausalLM.register(ProxyTunedConfig, model, exist_ok=True)

    def prompt_formats(self, pair: int) -> tuple[str, str]:
        """Return the formats of the expert and the anti of one pair; unless told otherwise the base has its own."""
        entry = (self.pairs or [])[pair]
        formats = {"expert": self.expert_prompt, "anti": self.anti_prompt}
        for name, form in formats.items():
            unsaid = self.base_prompt if entry.get(name) == BASE and form == "raw" else form
            formats[name] = entry.get(f"{name}_prompt") or unsaid
        return formats["expert"], formats["anti"]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The strength of each pair."""
        pairs = self.pairs or []
        return pair_alphas([pair.get("alpha", 1.0) for pair in pairs], len(pairs))

    def replace_alphas(self, alpha: float | Sequence[float]) -> None:
        """Set the strength of every pair: one number, or one per pair.

        Raises:
            OptionError: Not one per pair, or not finite.
        """
        pairs = self.pairs or []
        for pair, value in zip(pairs, pair_alphas(alpha, len(pairs)), strict=True):
            pair["alpha"] = value


# As transformers would have it of a model in a package of its own: its Auto classes read proxy folders from here on.
AutoConfig.register(ProxyTunedConfig.model_type, ProxyTunedConfig, exist_ok=True)
