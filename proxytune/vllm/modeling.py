"""The composite as one vLLM model: base, experts and antis share its scheduler, batch and paged KV cache."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.sequence import IntermediateTensors

from proxytune.errors import RuntimeUnsupportedError
from proxytune.rules import rule_of
from proxytune.steering import tables_of
from proxytune.vllm import compat
from proxytune.vllm.adapter import read_factors
from proxytune.vllm.alpha import COLUMNS_PER_ALPHA, AlphaRows, RoleInput, from_columns, to_columns
from proxytune.vllm.marks import Marks, broken_roles, with_marks
from proxytune.vllm.pair import fingerprint, share
from proxytune.vllm.plan import Plan, RolePlan

_SEPARATOR = "."  # between a role's name and the key of one of its intermediate tensors


class ProxyTunedForCausalLM(nn.Module, SupportsPP):
    """A base steered by pairs of experts and antis, all on the same answer, each behind its own prompt."""

    def __init__(self, *, vllm_config, prefix: str = "") -> None:  # type: ignore[no-untyped-def]
        """Build every role under its own name; `prefix` is empty, as the composite is no part of another model."""
        super().__init__()
        compat.require_supported_engine(vllm_config)
        self.plan = Plan.of(vllm_config.model_config.hf_config)
        self.rule = rule_of(self.plan.rule)
        self.names = [role.name for role in self.plan.models]
        for role in self.plan.models:
            self.add_module(role.name, self._new_model(role, vllm_config))
        # For each model the roles that its rows are, by their indices in the plan: itself, then adapters over it.
        order = [role.name for role in self.plan.roles]
        self.role_indices = [
            [order.index(name), *(order.index(role.name) for role in self.plan.adapters_of(name))]
            for name in self.names
        ]
        self.secondary_weights = compat.weight_sources(self.plan)
        self.alpha_rows = AlphaRows.of(vllm_config)
        self.marks = Marks.of(vllm_config.model_config.hf_config)
        if self.rule.schedule is not None and self.alpha_rows is None:
            raise RuntimeUnsupportedError(
                f"rule {str(self.rule)!r} has a schedule, and this engine was started without what knows where answers "
                'begin: start it by ProxyGenerator(..., runtime="vllm") or `proxytune serve`, and without drafts.'
            )
        for name, model, role_indices in zip(self.names, self.models, self.role_indices, strict=True):
            compat.read_role_prompts(model, name, role_indices[0])
        self._fixed_inputs = None
        if compat.records_graphs(vllm_config):
            self._fixed_inputs = [FixedInputs(vllm_config) for _ in self.names]

    def _new_model(self, role: RolePlan, vllm_config: Any) -> Any:
        """Return a role's model; the experts that are adapters over it run inside."""
        adapters = self.plan.adapters_of(role.name)
        if not adapters:
            return compat.new_role(role, vllm_config)
        experts = {expert.name: read_factors(expert.model, expert.revision) for expert in adapters}
        model = compat.new_role(role, vllm_config, fingerprint(experts))
        share(model, role.name, experts)
        return model

    @property
    def models(self) -> list[Any]:
        """The models, base first."""
        return [self.get_submodule(name) for name in self.names]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Refuse: vLLM asks for it only where a prompt is given as embeddings."""
        raise RuntimeUnsupportedError(
            "prompt embeddings cannot be shared: the roles have embeddings of their own; pass token ids."
        )

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """Return what a later pipeline stage receives, zeros, for all roles together."""
        return _joined(
            self.names, [model.make_empty_intermediate_tensors(batch_size, dtype, device) for model in self.models]
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Return the hidden states of all roles side by side, then the columns of α: `[T, ΣD + 3 · pairs]`."""
        if self.marks is not None and input_ids is not None:
            # In place, as CUDA graphs read this memory: a mark may be in a step that was scheduled ahead.
            input_ids.clamp_(max=self.marks.first_id - 1)
        is_dummy = compat.is_dummy_run()
        role_inputs = {} if is_dummy or self.alpha_rows is None else self.alpha_rows.role_inputs
        outputs = [
            self._output(number, role_inputs.get(role_indices[0]), input_ids, positions, intermediate_tensors)
            for number, role_indices in enumerate(self.role_indices)
        ]
        if isinstance(outputs[0], IntermediateTensors):
            return _joined(self.names, outputs)
        states = self._by_role(outputs)
        if self.alpha_rows is not None:
            # `positions` are the request's, whatever each role read.
            alphas = self.alpha_rows.per_token(positions[: states[0].shape[0]], self.rule.schedule, is_dummy=is_dummy)
            states.append(to_columns(alphas, states[0].dtype))
        return torch.cat(states, dim=-1)

    def _output(
        self,
        number: int,
        role_input: RoleInput | None,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None,
    ) -> Any:
        """Return what a model gives for the step's tokens in their order; it may read others than these, or fewer."""
        name, model = self.names[number], self.models[number]
        if role_input is not None:
            compat.set_slots([self.plan.roles[index].name for index in self.role_indices[number]], role_input.slots)
            input_ids = role_input.step.inputs(input_ids, model.config.vocab_size)
            positions = role_input.step.positions
        if self._fixed_inputs is not None:
            input_ids, positions = self._fixed_inputs[number].hold(input_ids, positions)
        output = model(input_ids, positions, _of_role(name, intermediate_tensors))
        if role_input is None or isinstance(output, IntermediateTensors):
            return output
        return torch.cat([role_input.step.outputs(rows) for rows in output.chunk(len(self.role_indices[number]))])

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the combined logits `[N, V of the base]`, float32, then marks; ids that not all roles share are −inf.

        None on a tensor-parallel rank that does not sample.
        """
        strengths, states = self._split(hidden_states)
        heads = [model.lm_head for model in self.models]
        if self.rule.is_elementwise and compat.has_equal_shards(heads):
            shards = [
                model.logits_processor(model.lm_head, rows, skip_gather=True)
                for model, rows in zip(self.models, states, strict=True)
            ]
            by_role = self._by_role(shards)
            combined = compat.gather_logits(self._combined(by_role, strengths))
            broken = compat.on_any_rank(self._broken(by_role, strengths))
        else:
            logits = [model.compute_logits(rows) for model, rows in zip(self.models, states, strict=True)]
            if logits[0] is None:
                return None
            by_role = self._by_role(logits)
            combined, broken = self._combined(by_role, strengths), self._broken(by_role, strengths)
        if combined is None:
            return None
        widths = [model.logits_processor.org_vocab_size for model in self.models]
        width = min(*widths, self.plan.vocab_size or widths[0])
        table = nn.functional.pad(combined[..., :width], (0, widths[0] - width), value=-torch.inf)
        return table if broken is None else with_marks(table, broken)

    def _broken(self, logits: Sequence[Tensor], strengths: Tensor) -> Tensor | None:
        """Return `[N, roles]` as in `broken_roles`; None in an engine without marks."""
        return None if self.marks is None else broken_roles(logits, self.plan.pairs, strengths)

    def _split(self, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return α `[N, pairs]` or `[1, pairs]`, and for each model its roles' hidden states, one after another."""
        model_of = {
            role_index: number for number, role_indices in enumerate(self.role_indices) for role_index in role_indices
        }
        widths = [self.models[model_of[role_index]].lm_head.embedding_dim for role_index in range(len(self.plan.roles))]
        columns = 0 if self.alpha_rows is None else COLUMNS_PER_ALPHA * len(self.plan.pairs)
        *states, columns_of_alpha = torch.split(hidden_states, [*widths, columns], dim=-1)
        if self.alpha_rows is None:
            strengths = torch.tensor([self.plan.alphas], device=hidden_states.device)
        else:
            strengths = from_columns(columns_of_alpha)
        return strengths, [
            torch.cat([states[role_index] for role_index in role_indices]) for role_indices in self.role_indices
        ]

    def _by_role(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return each role's part of what the models gave, base first."""
        role_rows = {
            role_index: rows
            for role_indices, output in zip(self.role_indices, outputs, strict=True)
            for role_index, rows in zip(role_indices, output.chunk(len(role_indices)), strict=True)
        }
        return [role_rows[role_index] for role_index in range(len(self.plan.roles))]

    def _combined(self, logits: Sequence[Tensor], strengths: Tensor) -> Tensor:
        """Return the rule's logits `[N, V]` over the ids that all of these have, one entry per role."""
        width = min(table.shape[-1] for table in logits)
        # N rows of one position each; the rule's logits are `[B, T, V]`.
        rows = [table[:, None, :width] for table in logits]
        return self.rule(rows[0], [tables_of(rows, pair) for pair in self.plan.pairs], strengths)[:, 0]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Hand each role its weights; return the names of those that were loaded."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(self._named(weights))
        return loaded

    def _named(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield weights as `<role>.<name in its checkpoint>`; what carries no role's mark is the base's."""
        marks = {compat.weight_prefix(name): f"{name}{_SEPARATOR}" for name in self.names[1:]}
        for name, weight in weights:
            mark = next((mark for mark in marks if name.startswith(mark)), "")
            yield marks.get(mark, f"{self.names[0]}{_SEPARATOR}") + name.removeprefix(mark), weight


class FixedInputs:
    """Token ids and positions of a model at addresses that stay, as a CUDA graph that was captured with them asks."""

    def __init__(self, vllm_config: Any) -> None:
        """Make room for the longest step."""
        size, device = vllm_config.scheduler_config.max_num_batched_tokens, vllm_config.device_config.device
        self._input_ids = torch.zeros(size, dtype=torch.int32, device=device)
        self._positions = torch.zeros(size, dtype=torch.int64, device=device)

    def hold(self, input_ids: Tensor | None, positions: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return copies of ids and positions `[T]` there; ids are None on a later stage of a pipeline."""
        held = self._positions[: len(positions)].copy_(positions)
        return None if input_ids is None else self._input_ids[: len(input_ids)].copy_(input_ids), held


def _joined(names: list[str], tensors: list[IntermediateTensors]) -> IntermediateTensors:
    """Return all roles' tensors in one, each key behind its role's name."""
    return IntermediateTensors(
        {
            f"{name}{_SEPARATOR}{key}": tensor
            for name, role_tensors in zip(names, tensors, strict=True)
            for key, tensor in role_tensors.tensors.items()
        }
    )


def _of_role(name: str, tensors: IntermediateTensors | None) -> IntermediateTensors | None:
    """Return one role's part of what `_joined` made."""
    if tensors is None:
        return None
    start = f"{name}{_SEPARATOR}"
    return IntermediateTensors(
        {key.removeprefix(start): tensor for key, tensor in tensors.tensors.items() if key.startswith(start)}
    )
