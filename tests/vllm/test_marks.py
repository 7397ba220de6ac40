"""Logits that are no numbers, in the real engine: an error names role, row and position, and the engine lives on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from proxytune import ProxyGenerator
from proxytune.errors import NonFiniteLogitsError
from tests import tiny
from tests.vllm.conftest import both_runtimes, save_trio

Runtimes = tuple[ProxyGenerator, ProxyGenerator]

_BROKEN_ID = 20
_SOUND = [1, 5, 6, 7, 8]
_BROKEN = [1, 5, 6, _BROKEN_ID, 8, 9]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    """Both runtimes over a trio whose expert has a NaN in the embedding of one token."""
    folders = save_trio(tmp_path_factory.mktemp("broken"), ("llama",) * 3, (tiny.VOCAB_SIZE,) * 3)
    _break(folders[1])
    hf, vllm = both_runtimes(folders)
    yield hf, vllm
    vllm.close()


def _break(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][_BROKEN_ID, 3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"logprobs": 2}])
def test_rows_name_what_is_broken(runtimes: Runtimes, options: dict[str, float]) -> None:
    """Greedy, sampled, with log-probabilities: the error of the hf runtime; before and after it others get answers.

    The others have α 0: what is left of a NaN in freed blocks of the cache reaches later experts on vLLM's CPU build.
    """
    errors = []
    for generator in runtimes:
        before = generator.generate([_SOUND], max_new_tokens=6, alpha=0.0, **options)
        with pytest.raises(NonFiniteLogitsError, match="logits of the expert are NaN") as raised:
            generator.generate([_SOUND, _BROKEN], max_new_tokens=6, alpha=[0.0, 1.0], **options)
        errors.append(raised.value)
        after = generator.generate([_SOUND], max_new_tokens=6, alpha=0.0, **options)
        assert after[0].token_ids == before[0].token_ids
    assert [(error.role, error.row) for error in errors] == [("expert", 1)] * 2
    assert errors[1].position == len(_BROKEN) - 1


def test_strength_0_reads_no_expert(runtimes: Runtimes) -> None:
    """A row whose α is 0 is the base's, whatever the expert gives."""
    rows = [generator.generate([_BROKEN], max_new_tokens=6, alpha=0.0, ignore_eos=True) for generator in runtimes]
    assert [row.token_ids for row in rows[0]] == [row.token_ids for row in rows[1]]


def test_scores_name_it_too(runtimes: Runtimes) -> None:
    """A continuation after the broken token has no score."""
    _, vllm = runtimes
    with pytest.raises(NonFiniteLogitsError) as raised:
        vllm.score([_SOUND, _BROKEN], [[4, 5], [4, 5]], alpha=[0.0, 1.0])
    assert (raised.value.role, raised.value.row) == ("expert", 1)
    assert len(vllm.score([_SOUND], [[4, 5]], alpha=0.0)) == 1
