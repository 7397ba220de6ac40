"""The composite: three (or more) causal LMs that are one causal LM, with logits `base + Σ α · (expert − anti)`.

Because it is an ordinary transformers model, `generate` with beams, sampling, assisted decoding, static caches, logits
processors and streamers works on it unchanged, and so does whatever takes a causal LM.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from proxytune.checkpoints import load_tokenizer
from proxytune.errors import OptionError, ProxyTuneWarning, RuntimeUnsupportedError
from proxytune.hf.arguments import composite_cache, refuse_unshareable, with_prompt
from proxytune.hf.cache import CompositeCache, new_cache
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.finite import require_finite
from proxytune.hf.folder import local_folder, push
from proxytune.hf.loading import (
    load_config,
    load_models,
    merged_generation_config,
    roles_of,
    save_composite,
    stored_generation_config,
)
from proxytune.hf.probing import probed
from proxytune.hf.role import RolePrompt, distinct_roles
from proxytune.hf.support import Support
from proxytune.roles import Role, Term
from proxytune.rules import rule_of
from proxytune.steering import AlphaLike, Strengths, tables_of

_ROLE_FIELDS = ("dtype", "device_map", "quantization", "trust_remote_code")
_OWN_ARGUMENTS = ("alpha", "role_prompts", "prompt_length", "clamp_positions")


class ProxyTunedForCausalLM(PreTrainedModel, GenerationMixin):
    """A base steered by pairs of experts and antis.

    Attributes:
        roles: Every distinct role, base first. Pairs that share an anti (or one model under one prompt format) share it
            here too, with one forward pass and one cache.
        pair_roles: For each pair the indices of its expert and its anti in `roles`, None for an anti that is none.
        rule: Rule that combines their logits, named by the config.
    """

    config_class = ProxyTunedConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: ProxyTunedConfig, base: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Join loaded models.

        Args:
            config: Says α and prompt formats; its sizes are filled in here.
            base: A causal LM.
            pairs: (expert, anti) causal LMs; an expert may be `Adapted`, and over its anti it shares the weights. An
                anti that is none is None.
        """
        super().__init__(config)
        # Before the roles come in: it initialises every weight it does not know as loaded, those of adapters too.
        self.post_init()
        self.rule = rule_of(config.rule)
        roles, self.pair_roles = distinct_roles(config, base, pairs)
        self.models = torch.nn.ModuleList({id(role.model): role.model for role in roles}.values())
        self.eval()
        self.roles = [probed(role) for role in roles]
        width = min(role.logits_width for role in self.roles)
        config.vocab_size = min(config.vocab_size or width, width)
        contexts = [role.max_context for role in self.roles if role.max_context is not None]
        config.max_position_embeddings = min(contexts, default=None)
        config.num_hidden_layers = sum(getattr(role.config, "num_hidden_layers", 0) for role in self.roles)
        config.hidden_size = getattr(self.roles[0].config, "hidden_size", None)
        config.architectures = [type(self).__name__]
        if not self.support.cache:
            slow = next(role for role in self.roles if not role.support.cache)
            warnings.warn(
                f"{slow.name} is a {slow.config.model_type}, whose cache gives other logits than the full text: every "
                "token reads all of it again.",
                ProxyTuneWarning,
                stacklevel=2,
            )

    @classmethod
    def from_roles(
        cls, base: Role, pairs: Sequence[tuple[Term, Term]], config: ProxyTunedConfig, tokenizer: Any = None
    ) -> "ProxyTunedForCausalLM":
        """Return the composite of these roles; arguments as in `proxytune.hf.loading.load_models`."""
        base_model, models = load_models(base, pairs, tokenizer)
        composite = cls(config, base_model, models)
        if base.is_remote:
            base_model.device = composite.roles[1].device
        composite.generation_config = merged_generation_config(composite)
        return composite

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        config: ProxyTunedConfig | None = None,
        base_url: str | None = None,
        tokenizer: Any = None,
        output_loading_info: bool = False,
        trust_paths: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the composite that a proxy folder names; `kwargs` go to every role's own `from_pretrained`.

        `config`, `base_url` and `trust_paths` are as in `proxytune.hf.loading.load_config`, `tokenizer` as in
        `load_models`.
        """
        name = str(pretrained_model_name_or_path)
        revision = kwargs.pop("revision", None)  # of the proxy folder; the roles have their own
        config = load_config(name, config, base_url=base_url, revision=revision, trust_paths=trust_paths)
        folder = local_folder(name, revision)
        if config._attn_implementation is not None:
            kwargs.setdefault("attn_implementation", config._attn_implementation)
        role_fields = {key: kwargs.pop(key) for key in _ROLE_FIELDS if key in kwargs}
        for internal in ("adapter_kwargs", "_from_auto", "_commit_hash", "generation_config", "code_revision"):
            kwargs.pop(internal, None)
        base, pairs = roles_of(config, **role_fields, model_kwargs=kwargs)
        if tokenizer is None and base.is_remote:
            tokenizer = load_tokenizer(Role(str(folder)))
        composite = cls.from_roles(base, pairs, config, tokenizer)
        composite.generation_config = stored_generation_config(folder) or composite.generation_config
        composite.name_or_path = config.name_or_path = name
        # A role that lacks a tensor, or has one of another shape, is an error: there is nothing left to tell.
        info = {name: set[str]() for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        return (composite, {**info, "error_msgs": []}) if output_loading_info else composite

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the proxy folder: configs, card, and code for Auto classes, no weights.

        Raises:
            RoleError: A role was passed as a loaded model that was never saved, so there is nothing to refer to.
        """
        save_composite(self, save_directory)
        if kwargs.get("push_to_hub"):
            self.push_to_hub(kwargs.get("repo_id") or Path(save_directory).name, token=kwargs.get("token"))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the proxy folder, as `proxytune.hf.folder.push` does; the tokenizer is pushed by itself."""
        return push(repo_id, self.save_pretrained, self.config, **kwargs)

    @property
    def base(self) -> Any:
        """The base model."""
        return self.roles[0].model

    @property
    def support(self) -> Support:
        """Kinds of forward that are exact for every role."""
        return reduce(and_, (role.support for role in self.roles))

    @property
    def device(self) -> torch.device:
        """Device of input and logits: the base's."""
        return self.roles[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The base's dtype; logits are float32 whatever it is."""
        dtype: torch.dtype = self.base.dtype
        return dtype

    def get_input_embeddings(self) -> Any:
        """Return the base's embedding, for tools that look at its size."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """Return None: no single head makes these logits."""
        return

    def new_cache(self, implementation: str | None = None, max_lengths: Sequence[int] = ()) -> CompositeCache:
        """Return an empty cache for `past_key_values`; arguments as in `proxytune.hf.cache.new_cache`.

        Raises:
            RuntimeUnsupportedError: A role's cache gives other logits than the full text.
        """
        if not self.support.cache:
            raise RuntimeUnsupportedError(
                "a role's cache gives other logits than the full text: pass use_cache=False and all of the tokens."
            )
        return new_cache([role.config for role in self.roles], implementation, max_lengths)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CompositeCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        alpha: AlphaLike | None = None,
        role_prompts: Sequence[RolePrompt | None] | None = None,
        role_inputs: Sequence[dict[str, Any] | None] | None = None,
        answer_position: int | Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return the combined logits, float32, `[B, T', vocab_size]`.

        Args:
            input_ids: `[B, T]`, tokens behind what the cache holds.
            attention_mask: `[B, past + T]`; None when nothing is padded.
            past_key_values: From `new_cache`, or None.
            use_cache: Make a cache when none is given; None is what the config says, and True where it says nothing.
            logits_to_keep: Only the last so many positions; 0 keeps all.
            labels: `[B, T]`, −100 where not counted; adds the mean next-token loss.
            alpha: None for the config's; a number, `[B]`, one number per pair, or `[B, pairs]`.
            role_prompts: Without a cache: what each role reads in place of `input_ids` (None: the same). Right-aligned
                logits of equal number come from `logits_to_keep`.
            role_inputs: Ready arguments per role, as `prepare_inputs_for_generation` makes them.
            answer_position: For rules with a schedule, the position in its answer of the token that the last logits are
                of, one number or `[B]`.
            return_dict: False for a tuple; None for what the config says.
            **kwargs: Arguments that transformers passes to every model and that mean nothing here.

        Raises:
            NonFiniteLogitsError: A role's logits are NaN or infinite.
            OptionError: The rule has a schedule, and nothing says where the answer begins.
        """
        strengths = self._strengths(alpha)
        if role_inputs is None:
            refuse_unshareable(kwargs)
            if input_ids is None:
                raise OptionError("forward needs input_ids: pass a tensor [B, T] of token ids.")
            if past_key_values is None and self._makes_cache(use_cache, role_prompts, input_ids.shape[1]):
                past_key_values = self.new_cache()
            role_inputs = self.direct_inputs(
                input_ids, attention_mask, composite_cache(past_key_values), strengths.active, role_prompts
            )
        logits = self._combined(role_inputs, strengths, logits_to_keep, answer_position)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels.to(logits.device), vocab_size=logits.shape[-1])
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: CompositeCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        role_prompts: Sequence[RolePrompt | None] | None = None,
        prompt_length: int | None = None,
        clamp_positions: bool = False,
        alpha: AlphaLike | None = None,
        logits_to_keep: int | Tensor = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return forward arguments for each role, made by its own class from its prompt and the shared continuation.

        Nothing is carried from step to step: a role's ids are its prompt and everything generated so far, and what of
        them is new is what its cache lacks. So beams, speculation and chunked input need no case of their own.

        Args:
            input_ids: `[B, T]`, the base's prompt and the continuation.
            next_sequence_length: Number of new ones among them; None for those that the cache lacks.
            past_key_values: The composite's cache.
            attention_mask: `[B, T]` for the base; None when nothing is padded.
            is_first_iteration: True for the prompt.
            role_prompts: A prompt per role (None: the base's).
            prompt_length: Width of the base's prompt in `input_ids`; needed with `role_prompts` and by schedules.
            clamp_positions: Let rows that are finished, but still in the batch, run past their context.
            alpha: As in `forward`.
            logits_to_keep: As in `forward`.
            **kwargs: Other arguments of generate (`use_cache`).
        """
        refuse_unshareable(kwargs)
        cache = composite_cache(past_key_values)
        num_new_tokens = None if is_first_iteration or cache is None else next_sequence_length
        if attention_mask is not None and attention_mask.shape[1] > input_ids.shape[1]:
            # Only what follows a filled cache was passed, as transformers allows.
            num_new_tokens = input_ids.shape[1]
        strengths = self._strengths(alpha)
        role_inputs: list[dict[str, Any] | None] = [None] * len(self.roles)
        for role_index in self._active(strengths.active):
            prompt = role_prompts[role_index] if role_prompts else None
            ids, mask = with_prompt(input_ids, attention_mask, prompt, prompt_length)
            role_inputs[role_index] = self.roles[role_index].next_inputs(
                ids,
                mask,
                None if cache is None else cache.views[role_index],
                num_new_tokens=num_new_tokens,
                is_clamped=clamp_positions,
            )
        return {
            "role_inputs": role_inputs,
            "past_key_values": cache,
            "alpha": alpha,
            "logits_to_keep": logits_to_keep,
            "answer_position": None if prompt_length is None else input_ids.shape[1] - prompt_length,
        }

    def _makes_cache(self, use_cache: bool | None, role_prompts: Any, length: int) -> bool:
        """Return True where a forward without a cache is to make one: as other models do, unless told not to."""
        if use_cache is not None:
            return use_cache
        # Behind an API nothing is kept, and what has prompts of its own knows by itself what follows.
        if role_prompts is not None or self.roles[0].is_remote or not getattr(self.config, "use_cache", True):
            return False
        return self.support.cache and all(length <= (role.rope_limit or length) for role in self.roles)

    def _combined(
        self,
        role_inputs: Sequence[dict[str, Any] | None],
        strengths: Strengths,
        logits_to_keep: int | Tensor,
        answer_position: int | Tensor | None,
    ) -> Tensor:
        logits = [
            None if inputs is None else role.logits(inputs, logits_to_keep)[..., : self.config.vocab_size]
            for role, inputs in zip(self.roles, role_inputs, strict=True)
        ]
        if not torch.compiler.is_compiling():
            names, unused = [role.name for role in self.roles], self._unused_rows(strengths)
            require_finite(logits, names, role_inputs, logits_to_keep=logits_to_keep, unused=unused)
        # Inputs that were prepared say who takes part, also where the strengths are on another device than the host.
        active = [all(index is None or logits[index] is not None for index in pair) for pair in self.pair_roles]
        tables = [None if table is None else table.to(self.device) for table in logits]
        pairs = [tables_of(tables, pair) for pair, is_active in zip(self.pair_roles, active, strict=True) if is_active]
        values = replace(strengths, active=tuple(active)).of_active_pairs(self.device)
        if self.rule.schedule is not None:
            positions = _positions(answer_position, logits[0].shape[1], self.device)  # type: ignore[union-attr]
            values = self.rule.schedule.at(values, positions)
        return self.rule(logits[0], pairs, values)  # type: ignore[arg-type]

    def _unused_rows(self, strengths: Strengths) -> Tensor:
        """Return `[roles, B]` (`[roles, 1]` for all rows), the rows that a role's logits do not change."""
        is_zero = strengths.values == 0
        unused = [torch.zeros_like(is_zero[:, 0])]
        for role_index in range(1, len(self.roles)):
            pairs = [number for number, role_indices in enumerate(self.pair_roles) if role_index in role_indices]
            unused.append(is_zero[:, pairs].all(-1))
        return torch.stack(unused)

    def direct_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: CompositeCache | None,
        active: Sequence[bool],
        role_prompts: Sequence[RolePrompt | None] | None,
    ) -> list[dict[str, Any] | None]:
        """Return `role_inputs` for `forward`, of whose arguments these are: None for a role of no `active` pair."""
        inputs: list[dict[str, Any] | None] = [None] * len(self.roles)
        for role_index in self._active(active):
            prompt = role_prompts[role_index] if role_prompts else None
            ids, mask = (input_ids, attention_mask) if prompt is None else (prompt.input_ids, prompt.attention_mask)
            view = None if cache is None else cache.views[role_index]
            inputs[role_index] = self.roles[role_index].inputs(ids, mask, view)
        return inputs

    def _strengths(self, alpha: AlphaLike | None) -> Strengths:
        """Return the strengths of a call; None is the config's."""
        return Strengths.of(self.config.alphas if alpha is None else alpha, len(self.pair_roles))

    def _active(self, active: Sequence[bool]) -> list[int]:
        """Return the indices of the roles that take part: the base, and those of pairs that are active."""
        pairs = zip(self.pair_roles, active, strict=True)
        return sorted(
            {
                0,
                *(
                    index
                    for role_indices, is_active in pairs
                    if is_active
                    for index in role_indices
                    if index is not None
                ),
            }
        )

    def _expand_inputs_for_generation(  # type: ignore[no-untyped-def]
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs
    ):
        """Repeat rows for beams; transformers does it for tensors, the prompts of the roles are ours.

        Here the prompt is seen before anything is generated, so here a schedule learns where the answer begins.
        """
        prompts = model_kwargs.get("role_prompts")
        if prompts and expand_size > 1:
            model_kwargs["role_prompts"] = [prompt and prompt.expanded(expand_size) for prompt in prompts]
        if self.rule.schedule is not None and input_ids is not None:
            model_kwargs.setdefault("prompt_length", input_ids.shape[1])
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )

    def _get_candidate_generator(self, *, model_kwargs, assistant_model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep from an assistant that is a plain model what only the composite understands."""
        if not isinstance(assistant_model, ProxyTunedForCausalLM):
            model_kwargs = {key: value for key, value in model_kwargs.items() if key not in _OWN_ARGUMENTS}
        return super()._get_candidate_generator(model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs)

    def _prepare_cache_for_generation(  # type: ignore[no-untyped-def]
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        """Give generate a composite cache where it would make one for a single model."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
        support = self.support
        if not support.cache or (generation_config.num_beams > 1 and not support.reorder):
            model_kwargs["use_cache"] = False
            return None
        if generation_config.prefill_chunk_size is not None:
            raise RuntimeUnsupportedError(
                "prefill_chunk_size is per model: leave it out, or call the roles themselves."
            )
        prompt_length = model_kwargs.get("prompt_length")
        prompts = model_kwargs.get("role_prompts") or [None] * len(self.roles)
        lengths = [
            max_cache_length if prompt is None else max_cache_length - prompt_length + prompt.input_ids.shape[1]
            for prompt in prompts
        ]
        cache = self.new_cache(generation_config.cache_implementation, lengths)
        if generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs["past_key_values"] = cache
        return None


def _positions(last: int | Tensor | None, num_logits: int, device: torch.device) -> Tensor:
    """Return the positions in their answers `[B or 1, T]` of the tokens that logits are of, the last ones' given.

    Raises:
        OptionError: They are not.
    """
    if last is None:
        raise OptionError(
            "the rule's schedule goes by the position in the answer, and nothing says where that begins: call generate "
            "or score, or pass answer_position=."
        )
    ends = torch.as_tensor(last, device=device).reshape(-1, 1)
    return (ends + torch.arange(1 - num_logits, 1, device=device)).clamp(min=0)
