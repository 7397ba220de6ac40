"""The composite as one vLLM model: base, experts and antis share its scheduler, batch and paged KV cache."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.sequence import IntermediateTensors

from proxytune.errors import RuntimeUnsupportedError
from proxytune.steering import Alpha, steer_all
from proxytune.vllm import compat
from proxytune.vllm.alpha import COLUMNS_PER_ALPHA, AlphaRows, from_columns, to_columns
from proxytune.vllm.plan import Plan

_SEPARATOR = "."  # between a role's name and the key of one of its intermediate tensors


class ProxyTunedForCausalLM(nn.Module, SupportsPP):
    """A base steered by pairs of experts and antis, all on the same tokens at the same positions."""

    def __init__(self, *, vllm_config, prefix: str = "") -> None:  # type: ignore[no-untyped-def]
        """Build every role under its own name; `prefix` is empty, as the composite is no part of another model."""
        super().__init__()
        compat.require_supported_engine(vllm_config)
        self.plan = Plan.of(vllm_config.model_config.hf_config)
        self.names = [role.name for role in self.plan.roles]
        for role in self.plan.roles:
            self.add_module(role.name, compat.new_role(role, vllm_config))
        self.secondary_weights = compat.weight_sources(self.plan)
        self.alpha_rows = AlphaRows.of(vllm_config)

    @property
    def roles(self) -> list[Any]:
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
            self.names, [role.make_empty_intermediate_tensors(batch_size, dtype, device) for role in self.roles]
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Return the hidden states of all roles side by side, then the columns of α: `[T, ΣD + 3 · pairs]`."""
        outputs = [
            role(input_ids, positions, _of_role(name, intermediate_tensors))
            for name, role in zip(self.names, self.roles, strict=True)
        ]
        if isinstance(outputs[0], IntermediateTensors):
            return _joined(self.names, outputs)
        if self.alpha_rows is not None:
            alphas = self.alpha_rows.per_token(outputs[0].shape[0], compat.query_starts())
            outputs.append(to_columns(alphas, outputs[0].dtype))
        return torch.cat(outputs, dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the combined logits `[N, V of the base]`, float32; ids that not all roles share are −inf.

        None on a tensor-parallel rank that does not sample.
        """
        widths = [role.lm_head.embedding_dim for role in self.roles]
        columns = 0 if self.alpha_rows is None else COLUMNS_PER_ALPHA * len(self.plan.pairs)
        *states, columns_of_alpha = torch.split(hidden_states, [*widths, columns], dim=-1)
        logits = [role.compute_logits(state.contiguous()) for role, state in zip(self.roles, states, strict=True)]
        if logits[0] is None:
            return None
        width = min(found.shape[-1] for found in logits)
        width = min(width, self.plan.vocab_size or width)
        alphas: Sequence[Alpha] = self.plan.alphas
        if self.alpha_rows is not None:
            alphas = from_columns(columns_of_alpha).unbind(-1)
        pairs = [
            (logits[expert][..., :width], logits[anti][..., :width], alpha)
            for (expert, anti), alpha in zip(self.plan.pairs, alphas, strict=True)
        ]
        combined = steer_all(logits[0][..., :width], pairs)
        return nn.functional.pad(combined, (0, logits[0].shape[-1] - width), value=-torch.inf)

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


def _joined(names: list[str], tensors: list[IntermediateTensors]) -> IntermediateTensors:
    """Return all roles' tensors in one, each key behind its role's name."""
    return IntermediateTensors(
        {
            f"{name}{_SEPARATOR}{key}": tensor
            for name, found in zip(names, tensors, strict=True)
            for key, tensor in found.tensors.items()
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
