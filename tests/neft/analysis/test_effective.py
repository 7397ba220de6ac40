"""The effective strength of other implementations: by hand, and against the real transformers hook."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from neft.inspecting.effective import effective_alphas


def _by_name(lengths, **options):
    given = {"alpha": 5.0, "batch_size": 2, "max_length": 16, **options}
    found = effective_alphas(lengths, **given)
    names = ("rule", "padded", "fixed", "packed", "joined", "joined_packs")
    return dict(zip(names, found, strict=True))


def test_by_hand():
    """Lengths 4 and 16 in one batch of 2 and a window of 16: the short one has half of α padded, 5·√(4/20) joined."""
    found = _by_name([4, 16])
    assert (found["rule"].lowest, found["rule"].highest) == (5.0, 5.0)
    assert (found["padded"].lowest, found["padded"].mean, found["padded"].highest) == (2.5, 3.75, 5.0)
    assert found["padded"].noised_padding == pytest.approx(12 / 32)
    assert found["packed"].lowest == 2.5
    assert found["joined"].lowest == pytest.approx(5 * math.sqrt(4 / 20))
    assert found["joined"].highest == pytest.approx(5 * math.sqrt(16 / 20))
    assert found["joined_packs"].highest == pytest.approx(5 / math.sqrt(2))


def test_the_figure_of_the_design():
    """Documents of 300 tokens, packed to 2048, four packs in a row: α = 5 acts as 0.957."""
    assert _by_name([300] * 8, batch_size=4, max_length=2048)["joined_packs"].mean == pytest.approx(0.957, abs=5e-4)


def test_equal_rows_lose_nothing_by_padding():
    """Without padding the width is the length, so transformers gives what was asked for."""
    found = _by_name([7, 7, 7, 7])["padded"]
    assert (found.lowest, found.highest, found.noised_padding) == (5.0, 5.0, 0.0)


def test_the_order_of_batches_is_the_seeds():
    """The same seed gives the same figures, and the documents' order does not matter to fixed widths."""
    lengths = [1, 3, 5, 7, 9, 11, 13, 15]
    assert _by_name(lengths, seed=3) == _by_name(lengths, seed=3)
    assert _by_name(lengths, seed=1)["padded"] != _by_name(lengths, seed=2)["padded"]


@pytest.mark.parametrize(("lengths", "width"), [([4, 16], 16), ([100, 256], 256)])
def test_the_real_hook_of_transformers_agrees(lengths, width):
    """Noise drawn by transformers' own hook, measured per document, is that of the effective α, padding included."""
    dim = 64
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(8, dim).train()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    ids = torch.zeros(200, width, dtype=torch.int64)
    moved = embedding(ids) - embedding.weight[0]
    found = _by_name(lengths, max_length=width)["padded"]
    for length, wanted in zip(lengths, (found.lowest, found.highest), strict=True):
        rms = moved[:, :length].square().mean().sqrt().item()
        assert rms * math.sqrt(3 * length * dim) == pytest.approx(wanted, rel=0.02)
    assert moved[:, lengths[0] :].norm(dim=-1).min() > 0
