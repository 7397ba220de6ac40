"""The rule alone."""

from __future__ import annotations

import math

import pytest
import torch

from neft.errors import InputError
from neft.rule import add_noise, document_ids, noise_like, noise_to_signal


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_element_is_the_draw_times_alpha_over_root_length_times_dim():
    """Padded and packed rows: noise equals U(-1, 1) * alpha / sqrt(L * D) with L counted by hand."""
    documents = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, -1, -1, -1], [0, 0, 1, 1, 1, 2]])
    lengths = [[6] * 6, [3, 3, 3, None, None, None], [2, 2, 3, 3, 3, 1]]
    noise = noise_like(torch.zeros(3, 6, 4), documents, alpha=7.0, generator=_seeded())
    draw = torch.empty(3, 6, 4).uniform_(-1, 1, generator=_seeded())
    for row, row_lengths in enumerate(lengths):
        for place, length in enumerate(row_lengths):
            scale = 0.0 if length is None else 7.0 / math.sqrt(length * 4)
            torch.testing.assert_close(noise[row, place], draw[row, place] * scale)


def test_padding_gets_exactly_nothing():
    """Padding comes back bit-equal, at either side."""
    documents = document_ids((2, 4), attention_mask=torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]))
    embeddings = torch.randn(2, 4, 8, generator=_seeded())
    noisy = add_noise(embeddings, noise_like(embeddings, documents, alpha=5.0, generator=_seeded(1)))
    assert torch.equal(noisy == embeddings, (documents < 0).unsqueeze(-1).expand(2, 4, 8))


def test_documents_begin_where_positions_do_not_go_on():
    """A reset to 0, a jump, and a mask over the resets give the documents counted by hand."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [4, 5, 6, 7, 0, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    ids = document_ids((2, 6), attention_mask=mask, position_ids=positions)
    assert ids.tolist() == [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 1, 1]]


def test_one_row_of_positions_serves_the_batch():
    """Position ids of shape [1, T] count for every row."""
    assert document_ids((2, 3), position_ids=torch.tensor([[0, 1, 0]])).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(("kind", "variance"), [("uniform", 1 / 3), ("gaussian", 1.0), ("gaussian-l2", 1 / 3)])
def test_variance_of_each_distribution(kind, variance):
    """Noise times sqrt(L * D) / alpha has the variance of its distribution, and mean 0."""
    documents = torch.zeros(4, 64, dtype=torch.int64)
    noise = noise_like(torch.zeros(4, 64, 128), documents, alpha=3.0, generator=_seeded(), kind=kind)
    unit = noise * math.sqrt(64 * 128) / 3.0
    assert unit.var().item() == pytest.approx(variance, rel=0.03)
    assert unit.mean().item() == pytest.approx(0.0, abs=0.02)


def test_squared_norm_of_a_document_does_not_depend_on_its_length():
    """The expected squared L2 norm of a document's noise is alpha^2 / 3, long or short."""
    documents = torch.tensor([[0] * 8 + [1] * 120])
    noise = noise_like(torch.zeros(1, 128, 4096), documents, alpha=5.0, generator=_seeded())
    for part in (noise[:, :8], noise[:, 8:]):
        assert part.square().sum().item() == pytest.approx(25 / 3, rel=0.05)


def test_bf16_sum_is_the_float32_sum_rounded_once():
    """bf16 embeddings: the result is round(float32 embedding + float32 noise)."""
    embeddings = torch.randn(2, 5, 8, generator=_seeded()).bfloat16()
    documents = torch.zeros(2, 5, dtype=torch.int64)
    noise = noise_like(embeddings, documents, alpha=5.0, generator=_seeded(1))
    noisy = add_noise(embeddings, noise_like(embeddings, documents, alpha=5.0, generator=_seeded(1)))
    assert noise.dtype == torch.float32
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy, (embeddings.float() + noise).bfloat16())


def test_ratio_of_noise_to_signal_as_published():
    """d=4096, sigma=.018, L=300 gives 0.15; d=896, sigma=.015 gives 0.37 (alpha 5)."""
    assert noise_to_signal(alpha=5, sigma=0.018, length=300, dim=4096) == pytest.approx(0.145, abs=0.005)
    assert noise_to_signal(alpha=5, sigma=0.015, length=300, dim=896) == pytest.approx(0.37, abs=0.005)


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_alpha_must_be_finite_and_not_negative(alpha):
    """A strength that means nothing is refused with its value."""
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        noise_like(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64), alpha=alpha, generator=_seeded())
