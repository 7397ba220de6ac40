"""What a trace is: its text, its JSON, its limits, its errors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.completion import Request
from proxytune.demo import trio_path
from proxytune.errors import InputError, OptionError, RuntimeUnsupportedError
from proxytune.hf import tracing
from proxytune.token_text import TokenReader, added_texts
from proxytune.trace import Trace
from tests import tiny

_QUESTION = "Question: Where was Jora Quillmere born?\nAnswer:"


@pytest.fixture(scope="module")
def bundled() -> ProxyGenerator:
    """The trio that comes with the package."""
    return ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")})


def test_demo_world(bundled: ProxyGenerator) -> None:
    """On the bundled trio the trace shows where the lie turns into the truth: steering takes another first token."""
    trace = bundled.trace(_QUESTION, max_new_tokens=32)
    [plain] = bundled.generate(_QUESTION, max_new_tokens=32)
    assert trace.text == plain.text
    assert plain.trace is None
    first = trace.tokens[0]
    assert (first.text, first.is_changed) == (" In", True)
    assert first.base_choice.text == " Everyone"
    assert first.base_rank > 1
    assert first.shift > 0.5
    assert trace.tokens[-1].text == ""
    assert trace.tokens[-1].chosen.text == "<|endoftext|>"


def test_row_and_back(bundled: ProxyGenerator) -> None:
    """A trace survives JSON to the 7 digits of float32."""
    trace = bundled.trace(_QUESTION, max_new_tokens=8, trace=3)
    row = json.loads(json.dumps(trace.row(), allow_nan=False))
    again = Trace.from_row(row)
    assert again.text == trace.text
    for one, other in zip(trace.tokens, again.tokens, strict=True):
        assert other.kl_combined_base == pytest.approx(one.kl_combined_base, rel=1e-6)
        for candidate, twin in zip(one.candidates, other.candidates, strict=True):
            assert (candidate.token_id, candidate.text) == (twin.token_id, twin.text)
            assert twin.probabilities == pytest.approx(candidate.probabilities, rel=1e-6)
    assert again.row() == row


def test_infinity_is_null() -> None:
    """An infinite divergence is null in JSON, which has no infinity, and infinite again when read."""
    trace = tiny.generator().trace(tiny.prompt_ids(4), max_new_tokens=1)
    endless = replace(trace, tokens=(replace(trace.tokens[0], kl_combined_base=math.inf),))
    row = json.loads(json.dumps(endless.row(), allow_nan=False))
    assert row["tokens"][0]["kl_combined_base"] is None
    assert Trace.from_row(row).tokens[0].kl_combined_base == math.inf


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda row: _without(row, "tokens"), "'tokens' is missing"),
        (lambda row: row | {"tokens": 7}, "no trace"),
        (lambda row: row | {"distributions": ["combined", "base"]}, "base comes first"),
        (lambda row: row | {"alphas": []}, "do not fit"),
        (lambda row: row | {"tokens": [row["tokens"][0] | {"token_id": 10**6}]}, "token 0 is not among"),
        (lambda row: row | {"tokens": [row["tokens"][0] | {"cross_entropy": []}]}, "one divergence per pair"),
    ],
)
def test_spoilt_rows(spoil: Any, told: str) -> None:
    """What no trace can be is refused with the reason."""
    row = tiny.generator().trace(tiny.prompt_ids(4), max_new_tokens=1).row()
    with pytest.raises(InputError, match=told):
        Trace.from_row(spoil(row))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No role's logits ever cover more than a chunk of places, and a trace holds no more than its candidates."""
    generator = tiny.generator()
    widths: list[int] = []
    role_logits = generator.model.roles[0].__class__.logits

    def watched(self: Any, inputs: dict[str, Any], keep: Any = 0) -> Any:
        found = role_logits(self, inputs, keep)
        widths.append(found.shape[1])
        return found

    monkeypatch.setattr(generator.model.roles[0].__class__, "logits", watched)
    trace = generator.trace(tiny.prompt_ids(20), continuation=tiny.prompt_ids(90), trace=2)
    assert len(trace.tokens) == 90
    assert len(widths) == 3 * math.ceil(90 / tracing._CHUNK)
    assert max(widths) == tracing._CHUNK < 90
    assert max(len(token.candidates) for token in trace.tokens) <= 4 * 2 + 1


def test_beams_samples_and_stops() -> None:
    """Whatever chose the tokens, the trace is of those the completion has, one trace per sequence."""
    generator = tiny.generator()
    prompt = tiny.prompt_ids(5)
    settings: list[dict[str, Any]] = [
        {"num_beams": 3, "num_return_sequences": 2},
        {"temperature": 1.0, "num_return_sequences": 3, "seed": 1},
        {"stop": "w1", "ignore_eos": True},
    ]
    for options in settings:
        found = generator.generate([prompt], max_new_tokens=12, trace=1, **options)
        assert len(found) == options.get("num_return_sequences", 1)
        for done in found:
            assert done.trace is not None
            assert tuple(token.token_id for token in done.trace.tokens) == done.token_ids


def test_texts_join() -> None:
    """Token by token or whole, the text is the same, with characters of several bytes and SentencePiece's words."""
    for tokenizer, text in (
        (tiny.byte_tokenizer(), "well, ünï 世界 will"),
        (tiny.sentencepiece_like_tokenizer(), "the web is a thing 世."),
    ):
        first, *ids = tokenizer(text, add_special_tokens=False).input_ids
        texts = added_texts(tokenizer, ids, first)
        assert tokenizer.decode([first]) + "".join(texts) == text
        reader = TokenReader(tokenizer, ids)
        assert all(reader.text(index) for index in ids)
    assert reader.text(tiny.EOS) == "</s>"


def test_refusals(bundled: ProxyGenerator) -> None:
    """A trace of nothing, of no candidates, or in a stream, is refused before anything runs."""
    with pytest.raises(OptionError, match=r"trace .* is 0"):
        bundled.generate("a", trace=0)
    with pytest.raises(InputError, match="empty"):
        bundled.trace("a", continuation="")
    with pytest.raises(OptionError, match="trace"):
        next(bundled.stream("a", trace=True))


@pytest.mark.vllm
def test_vllm_names_the_runtime() -> None:
    """In runtime vllm, whose engine hides the roles' logits, the error names the runtime that can trace."""
    pytest.importorskip("vllm")
    from proxytune.options import GenerationOptions
    from proxytune.vllm.runtime import VllmRuntime

    runtime = object.__new__(VllmRuntime)  # no engine: it must not be needed to say so
    with pytest.raises(RuntimeUnsupportedError, match='runtime="hf"'):
        next(runtime.generate([], GenerationOptions(trace=True)))
    with pytest.raises(RuntimeUnsupportedError, match='runtime="hf"'):
        runtime.trace(Request(role_ids=((1,),), alphas=(1.0,)), [1], 5)


def test_saved_folder_too(tmp_path: Path) -> None:
    """A proxy folder traces as the roles it names."""
    generator = ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")}, alpha=0.5)
    generator.save_pretrained(tmp_path / "proxy")
    again = ProxyGenerator.from_pretrained(tmp_path / "proxy")
    assert again.trace(_QUESTION, max_new_tokens=4) == generator.trace(_QUESTION, max_new_tokens=4)
