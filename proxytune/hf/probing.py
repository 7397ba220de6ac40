"""Capabilities of a role: our own loop, by proof in tests, and kinds of forward, by a few tokens at load."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import GenerationMixin

from proxytune.errors import RoleError
from proxytune.hf.cache import new_cache
from proxytune.hf.decoding.attention import GROUPED
from proxytune.hf.role import RoleModel
from proxytune.hf.support import Support
from proxytune.library_errors import reason_of

# Each is tested against transformers' generate, speculation and sliding windows included.
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox", "gemma2"})
_ATTENTION = frozenset({"sdpa", "eager", GROUPED})
# Their frequencies depend on the longest row of a forward, so not on the row alone.
_MOVING_ROPE = frozenset({"dynamic", "longrope"})

_LENGTH, _PREFILL, _CHUNK = 9, 6, 2
_PADDING = _LENGTH - _PREFILL
# Differences that count as rounding, in standard deviations of the logits; in low precision as many times what the
# company of another row makes, within bounds. A shifted position, a lost state or a later token that is seen moves
# logits by a tenth to four.
_FINE, _COARSE, _NOISE_FACTOR = 0.002, (0.04, 0.3), 4
# The exact one with the least to compute comes first. A model that counts positions for itself takes a token that has
# the id of padding for padding, so nothing but the full text gives the right ones.
_CANDIDATES = [
    *(
        Support(True, padding, cache, chunks, reorder, gaps=False)
        for padding, cache, chunks, reorder in (
            (True, True, True, True),
            (True, True, False, True),
            (False, True, True, True),
            (False, True, False, True),
            (False, True, False, False),
            (True, False, False, False),
            (False, False, False, False),
        )
    ),
    Support(False, False, False, False, False, False),
]
_RULED_OUT = -1e4
# What models raise at a kind of forward that they do not know.
_LIBRARY_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError),
    ArithmeticError,
)
_probed: dict[str, Support] = {}


@torch.no_grad()
def probed(role: RoleModel) -> RoleModel:
    """Return the role with what its model supports, measured once per config and process.

    Architectures that our own loop is proved for cost nothing. Any other costs four forwards, of 33 token positions
    together, where every kind is exact; up to two more in low precision or with a generate of its own, and about 20
    where hardly any kind is exact.

    Raises:
        RoleError: No kind of forward gives the logits of a causal language model.
    """
    if role.is_remote or _is_proved(role):
        return role
    key = _key(role)
    if key not in _probed:
        probe = _Probe(role)
        if probe.is_damaged:  # which is refused where it is read, and says nothing of the config
            return role
        _probed[key] = probe.support()
    return replace(role, support=_probed[key])


def unsupported_reason(role: RoleModel) -> str | None:
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
    """Return the rope types of all layers; configs hold one set of parameters, or one per type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(entry.get("rope_type", "default")) for entry in nested or [parameters]}


def _is_proved(role: RoleModel) -> bool:
    """Return whether tests cover the model's class, which code that came with a checkpoint is not."""
    return type(role.model).__module__.startswith("transformers.models.") and unsupported_reason(role) is None


def _key(role: RoleModel) -> str:
    """Return what the outcome depends on."""
    model = role.model
    kind = (type(model).__module__, type(model).__qualname__, str(model.dtype), role.device.type)
    return str((kind, model.config._attn_implementation, {**model.config.to_dict(), "_name_or_path": None}))


class _Probe:
    """A role, a short text, and the logits of one plain forward over it."""

    def __init__(self, role: RoleModel) -> None:
        self.role = role
        config = role.config.to_dict()
        special = {value for name, value in config.items() if isinstance(value, int) and "_token_i" in name}
        draws = torch.randperm(role.logits_width, generator=torch.Generator().manual_seed(0)).tolist()
        ids = ([index for index in draws if index not in special] or draws) * _LENGTH
        self._ids = torch.tensor([ids[:_LENGTH]], device=role.device)
        self._others = torch.tensor([ids[_LENGTH : 2 * _LENGTH]], device=role.device)
        pad_id = config.get("pad_token_id")
        self._padding = torch.full((1, _PADDING), pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0)
        is_fine = role.model.dtype in (torch.float32, torch.float64) and not getattr(role.model, "is_quantized", False)
        self._expected = self._logits(self._ids)
        self._tolerance = _FINE
        if not is_fine:
            low, high = _COARSE
            noise = self._distance(self._logits(torch.cat([self._ids, self._others])), self._expected)
            self._tolerance = min(max(low, _NOISE_FACTOR * noise), high)

    @property
    def is_damaged(self) -> bool:
        """True if weights give NaN."""
        return bool(self._expected.isnan().any())

    def support(self) -> Support:
        """Return the first candidate that is exact."""
        if hasattr(self.role.config, "attn_layers"):
            # It begins where a text is longer than a chunk, which is longer than this one.
            self._refuse("its chunked or hashed attention gives tokens other neighbours as the text grows or is padded")
        self._require_plain_prompt()
        support = next(filter(self._is_exact, _CANDIDATES), None)
        return self._refuse_order() if support is None else support

    def _logits(self, ids: Tensor) -> Tensor:
        """Return the logits `[T, V]` of the first row from a forward over token ids alone."""
        arguments = {"input_ids": ids, "use_cache": False}
        try:
            logits = self.role.logits({key: value for key, value in arguments.items() if key in self.role.accepted})
        except torch.OutOfMemoryError:
            raise
        except _LIBRARY_ERRORS as error:
            self._refuse(f"a forward over token ids alone fails in {self.role.model.dtype} ({reason_of(error)})", error)
        if logits.dim() != 3 or logits.shape[:2] != ids.shape:
            self._refuse(f"a forward over token ids of shape {list(ids.shape)} gives logits {list(logits.shape)}")
        return logits[0].float()

    def _require_plain_prompt(self) -> None:
        """Raise where the model's own generate makes something else of a prompt than its token ids."""
        model = self.role.model
        if type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
            return
        try:
            prepared = model.prepare_inputs_for_generation(
                self._ids, attention_mask=torch.ones_like(self._ids), use_cache=False, is_first_iteration=True
            )
            logits = model(**prepared).logits[0, -1:].float()
        except torch.OutOfMemoryError:
            raise
        except _LIBRARY_ERRORS:
            return  # it needs what only its own generate knows; the plain forward is judged by itself
        if not self._agrees(logits, self._expected[-1:]):
            self._refuse("its own generate reads more than the tokens of the prompt, and gives other logits")

    def _is_exact(self, support: Support) -> bool:
        """Return whether forwards of these kinds give the logits of the plain one."""
        try:
            return all(
                self._agrees(logits.float(), self._expected[start : start + logits.shape[0]])
                for start, logits in self._run(replace(self.role, support=support))
            )
        except torch.OutOfMemoryError:
            raise
        except _LIBRARY_ERRORS:
            return False

    def _run(self, role: RoleModel) -> Iterator[tuple[int, Tensor]]:
        """Yield the positions and logits `[T, V]` of the text, read in the parts and with the padding of a support."""
        support = role.support
        cache = new_cache([role.config]) if support.cache else None
        view = None if cache is None else cache.views[0]
        ids, mask = self._ids[:, :_PREFILL], None
        if support.padding:
            padded = torch.cat([self._padding.to(ids), ids], dim=1)
            ids = torch.cat([padded, self._others])
            mask = torch.ones_like(ids)
            mask[0, :_PADDING] = 0
        yield 0, role.logits(role.inputs(ids, mask, view))[0, -_PREFILL:]
        if cache is None:
            return
        start = _PREFILL
        if support.chunks:
            mask = _longer(mask, _CHUNK)
            new = self._ids[:, start : start + _CHUNK].expand(ids.shape[0], -1)
            yield start, role.logits(role.inputs(new, mask, view))[0]
            start += _CHUNK
        row = 0
        if support.reorder:
            # The text goes on in the last row, as a beam does.
            order = torch.tensor([ids.shape[0] - 1, row])
            cache.reorder_cache(order)
            mask, row = None if mask is None else mask[order.to(mask.device)], 1
        for position in range(start, _LENGTH):
            mask = _longer(mask, 1)
            new = self._ids[:, position : position + 1].expand(2 if support.reorder else ids.shape[0], -1)
            yield position, role.logits(role.inputs(new, mask, view))[row]

    def _agrees(self, logits: Tensor, expected: Tensor) -> bool:
        """Return whether logits `[T, V]` differ by rounding alone."""
        return self._distance(logits, expected) <= self._tolerance

    def _distance(self, logits: Tensor, expected: Tensor) -> float:
        """Return how far logits `[T, V]` are apart, in standard deviations of the expected ones."""
        # Tokens that are ruled out are −inf, or as good as.
        is_ruled_out = (expected <= _RULED_OUT) & (logits <= _RULED_OUT)
        differences = (logits - expected).masked_fill(is_ruled_out, 0.0)
        # A constant added to a row changes no probability.
        spread = float(expected[~is_ruled_out].std()) or 1.0
        # In low precision a router's choice may flip at single positions.
        return float((differences - differences.mean(-1, keepdim=True)).square().mean(-1).sqrt().median()) / spread

    def _refuse_order(self) -> NoReturn:
        """Raise for a model none of whose kinds of forward is causal."""
        if not self._agrees(self._logits(self._ids), self._expected):
            self._refuse("its logits differ from one call to the next")
        way_out = ""
        if getattr(self.role.config, "is_decoder", True) is False:
            way_out = "set is_decoder to true in its config.json if it was trained as a decoder, or "
        self._refuse("its logits at a token change with the tokens after it, as an encoder's do", way_out=way_out)

    def _refuse(self, reason: str, error: Exception | None = None, way_out: str = "") -> NoReturn:
        model_type = self.role.model.config.model_type
        raise RoleError(
            f"{self.role.name} is a {model_type} that cannot be steered: {reason}; {way_out}take a causal language "
            "model of text."
        ) from error


def _longer(mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """Return a mask with so many more real tokens."""
    return None if mask is None else torch.cat([mask, mask.new_ones(mask.shape[0], num_tokens)], dim=1)
