"""The NEFTune rule as pure functions.

Source: arXiv 2310.05914, algorithm 1: ε = α / √(L·d) · Uniform(−1, 1). Here L is the length of each *document*: the
real tokens of a padded row, or one document of a packed row. The paper does not speak of packing; widely used
implementations take the padded or packed width for L, and noise the padding too.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from neft.errors import InputError
from neft.kinds import NoiseKind

PADDING = -1
"""The document id of a position that belongs to no document."""

_UNIFORM_STD = 1 / math.sqrt(3)


def document_ids(
    shape: tuple[int, int],
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns which document every position of a batch belongs to, numbered from 0 within its row.

    A new document starts wherever the position ids do not go on by one; without position ids a row is one document.

    Args:
        shape: B and T.
        attention_mask: `[B, T]`, zero (or False) at padding; nothing is padding without it.
        position_ids: `[B, T]` or `[1, T]`.
        device: Device of the result; that of the given tensors otherwise.

    Returns:
        int64 `[B, T]`; `PADDING` at padding.

    >>> document_ids((1, 5), position_ids=torch.tensor([[0, 1, 2, 0, 1]])).tolist()
    [[0, 0, 0, 1, 1]]
    >>> document_ids((1, 4), attention_mask=torch.tensor([[1, 1, 1, 0]])).tolist()
    [[0, 0, 0, -1]]
    """
    if device is None:
        given = position_ids if position_ids is not None else attention_mask
        device = given.device if given is not None else None
    ids = torch.zeros(shape, dtype=torch.int64, device=device)
    if position_ids is not None:
        jumps = position_ids[:, 1:].to(device) != position_ids[:, :-1].to(device) + 1
        ids[:, 1:] = jumps.cumsum(dim=1)
    if attention_mask is not None:
        ids = ids.masked_fill(attention_mask.to(device) == 0, PADDING)
    return ids


def noise_like(
    embeddings: Tensor,
    documents: Tensor,
    *,
    alpha: float,
    generator: torch.Generator,
    kind: NoiseKind = "uniform",
) -> Tensor:
    """Returns NEFTune noise for a batch of embeddings: ε · α / √(L·D), with L the real length of each document.

    `uniform` is the paper's U(−1, 1). It also reports a Gaussian without giving its variance, so there are two:
    `gaussian` draws N(0, 1), and `gaussian-l2` N(0, 1/3), whose expected squared L2 norm is the uniform's, α²/3 per
    document.

    Args:
        embeddings: `[B, T, D]`; only its shape and device are read.
        documents: int64 `[B, T]` from `document_ids`; the ids of a row are below T, padding is negative.
        alpha: Strength, at least 0.
        generator: On the device of `embeddings`; it advances by B·T·D numbers.
        kind: The distribution.

    Returns:
        float32 `[B, T, D]`, exactly zero at padding; float32 whatever the embeddings are, so that a sum in float32
        is rounded once (`add_noise`).

    Raises:
        InputError: alpha is negative or not finite, or the kind is unknown.

    >>> rows = torch.zeros(2, 3, 4)
    >>> documents = document_ids((2, 3), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]))
    >>> noise = noise_like(rows, documents, alpha=5.0, generator=torch.Generator().manual_seed(0))
    >>> bool(noise[0].abs().max() <= 5 / math.sqrt(3 * 4)), bool(noise[1, 0].abs().max() <= 5 / math.sqrt(1 * 4))
    (True, True)
    >>> noise[1, 1:].abs().max().item()
    0.0
    """
    check_noise(alpha, kind)
    num_rows, width, dim = embeddings.shape
    is_real = documents >= 0
    slots = documents.masked_fill(~is_real, width)
    counts = torch.zeros(num_rows, width + 1, dtype=torch.float32, device=documents.device)
    counts.scatter_add_(1, slots, torch.ones_like(slots, dtype=torch.float32))
    lengths = counts.gather(1, slots)
    scale = torch.where(is_real, alpha / torch.sqrt(lengths * dim), 0.0)
    return _draw(embeddings, generator, kind).mul_(scale.unsqueeze(-1))


def noise_of_rms(
    embeddings: Tensor,
    documents: Tensor,
    *,
    rms: float,
    generator: torch.Generator,
    kind: NoiseKind = "uniform",
) -> Tensor:
    """Returns noise of one root mean square at every real position, whatever the document's length and the width.

    This is the rule of `noise_like` with α chosen per document so that the noise-to-signal ratio is fixed (`alpha_rel`
    of `neft.noise`): α = rms·√3·√(L·D). Not in the paper. The two Gaussians are the same distribution here.

    Args:
        embeddings: `[B, T, D]`; only its shape and device are read.
        documents: int64 `[B, T]` from `document_ids`; padding is negative.
        rms: Root mean square of an element, in the embeddings' unit.
        generator: On the device of `embeddings`; it advances by B·T·D numbers.
        kind: The distribution.

    Returns:
        float32 `[B, T, D]`, exactly zero at padding.

    >>> documents = document_ids((1, 3), attention_mask=torch.tensor([[1, 1, 0]]))
    >>> noise = noise_of_rms(torch.zeros(1, 3, 5000), documents, rms=0.1, generator=torch.Generator().manual_seed(0))
    >>> [round(token.square().mean().sqrt().item(), 2) for token in noise[0]]
    [0.1, 0.1, 0.0]
    """
    scale = torch.where(documents >= 0, rms / (1.0 if kind == "gaussian" else _UNIFORM_STD), 0.0)
    return _draw(embeddings, generator, kind).mul_(scale.unsqueeze(-1))


def add_noise(embeddings: Tensor, noise: Tensor) -> Tensor:
    """Returns embeddings + float32 noise, summed in float32 and rounded once to the embeddings' dtype."""
    return (embeddings.float() + noise).to(embeddings.dtype)


def noise_to_signal(*, alpha: float, sigma: float, length: float, dim: int) -> float:
    """Returns the ratio of the noise's to the embeddings' root mean square: α / (√3 · σ · √(L·d)).

    σ is the standard deviation of the embedding weights. The noise's L2 norm does not shrink with d, so the same α hits
    a small model harder.

    Raises:
        InputError: sigma, length or dim is not positive.

    >>> round(noise_to_signal(alpha=5, sigma=0.018, length=300, dim=4096), 3)
    0.145
    """
    if not (sigma > 0 and length > 0 and dim > 0):
        raise InputError(f"sigma={sigma}, length={length}, dim={dim}: the ratio needs all three above 0.")
    return alpha * _UNIFORM_STD / (sigma * math.sqrt(length * dim))


def check_noise(strength: float, kind: str, *, name: str = "alpha") -> None:
    """Checks a strength and a distribution; the name is the option's, for the message.

    Raises:
        InputError: the strength is negative or not finite, or the kind is unknown.
    """
    if not (math.isfinite(strength) and strength >= 0):
        usual = "the paper's alpha is 5 to 15" if name == "alpha" else "0.1 is noise of a tenth of the signal"
        raise InputError(f"{name} is {strength}; give a finite number, at least 0 ({usual}).")
    if kind not in get_args(NoiseKind):
        raise InputError(f"noise is {kind!r}; choose one of {', '.join(get_args(NoiseKind))}.")


def _draw(embeddings: Tensor, generator: torch.Generator, kind: NoiseKind) -> Tensor:
    drawn = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    if kind == "uniform":
        return drawn.uniform_(-1.0, 1.0, generator=generator)
    return drawn.normal_(0.0, 1.0 if kind == "gaussian" else _UNIFORM_STD, generator=generator)
