"""The saved proxy folder as other programs load it: transformers and lm-evaluation-harness."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from proxytune import ProxyGenerator
from tests.real.conftest import Cuts

NUM_ROWS = 200
TOLERANCE = 1e-3  # nats of an ending


@pytest.fixture(scope="module")
def folder(cuts: Cuts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proxy folder over the cuts, α = 0.5."""
    path = tmp_path_factory.mktemp("proxy")
    ProxyGenerator(*cuts.folders, dtype="float32", alpha=0.5).save_pretrained(path)
    return path


def test_transformers_generates_what_the_arithmetic_does(folder: Path, cuts: Cuts) -> None:
    """AutoModelForCausalLM on the proxy folder: its logits, and its own generate."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = cuts.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    assert torch.allclose(logits, cuts.reference.logits([ids[0].tolist()] * 3, [0.5]), atol=1e-3)
    found = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None)
    assert found[0, ids.shape[1] :].tolist() == cuts.reference.greedy([ids[0].tolist()] * 3, [0.5], 8)


@pytest.mark.timeout(1500)
def test_the_harness_scores_hellaswag_as_the_arithmetic(folder: Path, cuts: Cuts, data: Path) -> None:
    """lm-eval's HFLM on the proxy folder: log-likelihoods of HellaSwag's endings, 200 rows, are plain forwards'."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'proxytune[bench]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with gzip.open(data / "hellaswag/hellaswag_val_1000.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(NUM_ROWS), strict=False)]
    harness = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, softmax_dtype="float32")
    pairs = [(row["ctx"], " " + ending) for row in rows for ending in row["endings"]]
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
    found = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    expected = [value for row in rows for value in _loglikelihoods(cuts, row["ctx"], row["endings"])]
    assert len(found) == 4 * NUM_ROWS
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) < TOLERANCE


@torch.no_grad()
def _loglikelihoods(cuts: Cuts, context: str, endings: Sequence[str]) -> list[float]:
    """Return those of each ending, from one padded forward of each model over all of them."""
    first = len(cuts.tokenizer(context).input_ids)
    rows = [cuts.tokenizer(f"{context} {ending}").input_ids for ending in endings]
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    logits: dict[str, Any] = {
        name: model(ids, use_cache=False, logits_to_keep=ids.shape[1] - first + 1).logits
        for name, model in cuts.models.items()
    }
    table = (logits["base"] + 0.5 * (logits["expert"] - logits["anti"]))[:, :-1].log_softmax(-1)
    values = table.gather(-1, ids[:, first:, None])[..., 0]
    return [float(value[: len(row) - first].sum()) for value, row in zip(values, rows, strict=True)]
