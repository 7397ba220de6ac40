"""`noise`: NEFTune for a model while a `with` block runs.

A hook on the input embedding adds the noise. The lengths come from the attention mask and position ids of the forward
pass, which the embedding itself never sees: every module on the way down to it reports the ones it was called with.
This covers a model, its backbone called directly, and PEFT, which calls the inner model's `forward` past its hooks.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from neft.errors import InputError, NoiseError
from neft.handle import NoiseHandle
from neft.kinds import NoiseKind
from neft.rule import check_noise, document_ids, noise_like, noise_to_signal

__all__ = ["NoiseHandle", "embedding_sigma", "input_embedding", "noise", "noise_like", "noise_to_signal"]

DEFAULT_ALPHA = 5.0
"""The strength if none is given; the paper uses 5 to 15."""


@contextmanager
def noise(
    model: nn.Module,
    *,
    alpha: float | None = None,
    alpha_rel: float | None = None,
    seed: int = 0,
    kind: NoiseKind = "uniform",
    rank: int | None = None,
) -> Iterator[NoiseHandle]:
    """Adds NEFTune noise to a model's input embeddings in training mode, until the block ends in whatever way.

    Evaluation mode is never touched. Noise is added after the embedding module has run: where that module scales its
    output (Gemma, by √d), the same alpha is weaker by that factor; `alpha_rel` is not.

    Under torch.compile the noise itself runs outside of the compiled graph, at one break per module above the
    embedding; what was compiled before is compiled again. A checkpoint around the whole model sees the same noise when
    it recomputes, if each forward pass is followed by its backward pass.

    Args:
        model: A decoder-only language model, its backbone, or a PEFT model of either.
        alpha: Strength, at least 0; 0 leaves the embeddings bit-equal. 5 if `alpha_rel` is not given either.
        alpha_rel: Instead of alpha, the noise-to-signal ratio: the noise's root mean square over that of the
            embedding weights as they are now. The same for every document, whatever its length and the width.
        seed: With rank and step, the seed of the noise.
        kind: Distribution, see `neft.rule.noise_like`.
        rank: Of this process; that of `torch.distributed`, or 0 outside of it, if not given.

    Yields:
        The handle; set its `step` at the start of each optimizer step to make the noise of a resumed run exact.

    Raises:
        InputError: alpha or alpha_rel is negative or not finite, both are given, or the kind is unknown.
        NoiseError: the model has no input embedding or is an encoder-decoder, noise is already attached, or (in a
            forward pass) the lengths of the documents are hidden, transformers' own noise is on too, `nn.DataParallel`
            runs replicas, or a pass in training mode would get no noise (`inputs_embeds`, an embedding in evaluation
            mode). Only a pass without gradients and with other active adapters, or none, is left clean: it is the
            reference pass of DPO.
    """
    alpha = check_strength(alpha, alpha_rel, kind)
    embedding = input_embedding(model)
    _refuse_second(embedding)
    rms = None if alpha_rel is None else alpha_rel * embedding_sigma(embedding)
    handle = NoiseHandle(alpha=alpha, rms=rms, kind=kind, seed=seed, rank=_rank() if rank is None else rank)
    hooks: list[RemovableHandle] = []
    try:
        _attach(model, embedding, handle, hooks)
        yield handle
    finally:
        for hook in hooks:
            hook.remove()


def check_strength(alpha: float | None, alpha_rel: float | None, kind: NoiseKind) -> float | None:
    """Checks the ways to give a strength, and returns alpha: None if `alpha_rel` takes its place, 5 by default.

    Raises:
        InputError: one is negative or not finite, both are given, or the kind is unknown.
    """
    if alpha_rel is None:
        alpha = DEFAULT_ALPHA if alpha is None else alpha
        check_noise(alpha, kind)
        return alpha
    if alpha is not None:
        raise InputError(f"alpha={alpha} and alpha_rel={alpha_rel} both set the strength; give one.")
    check_noise(alpha_rel, kind, name="alpha_rel")
    return None


@torch.no_grad()
def embedding_sigma(embedding: nn.Module) -> float:
    """Returns the standard deviation of what an embedding module gives out, from its weights.

    The module's scale of its output (an `embed_scale`, as in Gemma) is counted in.

    Raises:
        NoiseError: this process holds no weights of it.
    """
    # Under an adapter on the embedding, the first parameter is still the base's weight.
    weight = next(embedding.parameters()).detach()
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    if not weight.numel():
        raise NoiseError("the embedding's weights are spread over processes (DeepSpeed ZeRO-3); give alpha instead.")
    return weight.float().std().item() * float(getattr(embedding, "embed_scale", 1.0))


class _PassInputs:
    """The attention masks and position ids of the forward pass under way, by depth of the module that got them."""

    def __init__(self) -> None:
        self.by_depth: dict[int, tuple[Any, Any]] = {}
        self.has_reached_embedding = False

    def enter(self, depth: int, attention_mask: Any, position_ids: Any) -> None:
        if depth == 0:
            self.has_reached_embedding = False
        self.by_depth[depth] = (attention_mask, position_ids)

    def leave(self, depth: int) -> None:
        self.by_depth = {other: inputs for other, inputs in self.by_depth.items() if other < depth}

    def document_ids(self, embeddings: Tensor) -> Tensor:
        """Returns int64 `[B, T]` for embeddings `[B, T, D]`, from the inputs nearest to the embedding that fit it."""
        if not self.by_depth:
            raise NoiseError(
                "the input embedding was called outside of the model's forward pass, so the documents' lengths are "
                "unknown; pass input_ids to the model."
            )
        num_rows, width = embeddings.shape[:2]
        nearest_first = [self.by_depth[depth] for depth in sorted(self.by_depth, reverse=True)]
        masks = [mask for mask, _ in nearest_first if mask is not None]
        positions = [ids for _, ids in nearest_first if ids is not None]
        mask = _first_of_shape(masks, {(num_rows, width)})
        position_ids = _first_of_shape(positions, {(num_rows, width), (1, width)})
        if position_ids is None and (positions or (masks and mask is None)):
            raise NoiseError(
                f"neither attention_mask nor position_ids has the shape [{num_rows}, {width}] of the batch, so the "
                "documents' lengths are unknown; pass one of them in two dimensions."
            )
        return document_ids((num_rows, width), attention_mask=mask, position_ids=position_ids, device=embeddings.device)


class _EmbeddingHook:
    """The forward hook on the embedding; its type is how a second attachment is recognised."""

    def __init__(self, handle: NoiseHandle, inputs: _PassInputs, adapters: _Adapters) -> None:
        self.handle = handle
        self.inputs = inputs
        self.adapters = adapters

    def __call__(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not embedding.training or self.handle.is_silent:
            return None
        noisy: Tensor = self._noisy(embedding, output)
        return noisy

    # Seeding a generator cannot be traced, and drawing in a traced graph would give other numbers.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _noisy(self, embedding: nn.Module, output: Tensor) -> Tensor:
        _refuse_library_noise(embedding)
        if getattr(embedding, "_is_replica", False):
            raise NoiseError(
                "nn.DataParallel runs replicas of this model in threads, which would share one noise; start a process "
                "per GPU with torchrun, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        self.inputs.has_reached_embedding = True
        if not torch.is_grad_enabled() and self.adapters.have_changed:
            return output
        return self.handle.apply(output, self.inputs.document_ids(output))


class _Adapters:
    """The active PEFT adapters of a model, and whether they are others than when the noise was attached."""

    def __init__(self, model: nn.Module) -> None:
        # PEFT's layers have a property of this name, transformers' models a method.
        layers = (module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool))
        self._layer: Any = next(layers, None)
        self._at_first = self._active()

    @property
    def have_changed(self) -> bool:
        return self._active() != self._at_first

    def _active(self) -> object:
        layer = self._layer
        return None if layer is None else (layer.disable_adapters, list(layer.active_adapters))


def _forget_compiled() -> None:
    """Drops what torch.compile made: it does not look for new hooks, so a model compiled before would get no noise."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _attach(model: nn.Module, embedding: nn.Module, handle: NoiseHandle, hooks: list[RemovableHandle]) -> None:
    inputs = _PassInputs()
    for depth, module in enumerate(_ancestors(model, embedding)):
        _watch(module, depth, inputs, hooks)
    hooks.append(embedding.register_forward_hook(_EmbeddingHook(handle, inputs, _Adapters(model))))
    _require_noise(model, embedding, handle, inputs, hooks)
    _forget_compiled()


def _watch(module: nn.Module, depth: int, inputs: _PassInputs, hooks: list[RemovableHandle]) -> None:
    """Makes a module report the mask and positions of its calls, given by keyword or by position."""
    names = list(inspect.signature(module.forward).parameters)

    def argument(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in kwargs or name not in names:
            return kwargs.get(name)
        index = names.index(name)
        return args[index] if index < len(args) else None

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.enter(depth, argument("attention_mask", args, kwargs), argument("position_ids", args, kwargs))

    def after(*_: object) -> None:
        inputs.leave(depth)

    hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
    # Also after an exception, or the next pass could read this one's lengths.
    hooks.append(module.register_forward_hook(after, always_call=True))


def _require_noise(
    model: nn.Module, embedding: nn.Module, handle: NoiseHandle, inputs: _PassInputs, hooks: list[RemovableHandle]
) -> None:
    """Makes a pass of the model in training mode that noise did not reach an error."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(*_: object) -> None:
        if not model.training or handle.is_silent or inputs.has_reached_embedding:
            return
        if embedding.training:
            raise NoiseError(
                "a pass in training mode did not call the input embedding, so it has no noise; pass input_ids, not "
                "inputs_embeds."
            )
        raise NoiseError(
            "the input embedding is in evaluation mode while the model trains, so there is no noise; call "
            "model.train(), or leave neft.noise out."
        )

    hooks.append(model.register_forward_hook(after))


def _ancestors(model: nn.Module, embedding: nn.Module) -> list[nn.Module]:
    """Returns the modules that contain the embedding, the outermost first."""
    for name, module in model.named_modules():
        if module is embedding:
            parts = name.split(".")
            return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    raise NoiseError("get_input_embeddings() returns a module that is not a part of the model; attach to its owner.")


def input_embedding(model: nn.Module) -> nn.Module:
    """Returns the module that embeds a model's input ids, inside PEFT too.

    Raises:
        NoiseError: there is none, or the model is an encoder-decoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise NoiseError("an encoder-decoder embeds two texts with one module; noise needs a decoder-only model.")
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if getter is not None else None
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Module) or embedding is model:
        raise NoiseError(f"{type(model).__name__} has no input embedding to add noise to; give a language model.")
    return embedding


def _refuse_second(embedding: nn.Module) -> None:
    if any(isinstance(hook, _EmbeddingHook) for hook in embedding._forward_hooks.values()):
        raise NoiseError("noise is already attached to this model; leave the first `with neft.noise(...)` block.")
    _refuse_library_noise(embedding)


def _refuse_library_noise(embedding: nn.Module) -> None:
    if hasattr(embedding, "neftune_noise_alpha"):
        raise NoiseError("transformers' own neftune_noise_alpha is active on this model; leave it None.")


def _first_of_shape(tensors: list[Any], shapes: set[tuple[int, int]]) -> Tensor | None:
    return next((t for t in tensors if isinstance(t, Tensor) and tuple(t.shape) in shapes), None)


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
