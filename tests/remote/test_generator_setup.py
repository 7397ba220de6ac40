"""Naming a base behind an API, what it cannot do, and the folder that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from proxytune import ProxyGenerator, RemoteSettings, Role
from proxytune.errors import (
    OptionError,
    RoleError,
    RuntimeUnsupportedError,
    UnknownOptionError,
    VocabularyError,
)
from tests import tiny
from tests.remote import rig

URL = "http://127.0.0.1:9/v1"
KEY = "sk-not-a-real-one-5f1c"


def test_a_name_and_a_url_are_enough() -> None:
    """`base="openai:<model>"` with `base_url` is a base; tokenizer and ends are the small models'."""
    with rig.server() as server:
        generator = ProxyGenerator(base="openai:base", base_url=server.url, **rig.SMALL)
        [found] = generator.generate(rig.questions(1), max_new_tokens=4)
    assert found.token_ids == rig.greedy(1)[0][:4]
    assert generator.eos_token_ids == rig.local().eos_token_ids
    assert generator.model.config.vocab_size == rig.local().model.config.vocab_size
    assert generator.tokenizer.get_vocab() == rig.local().tokenizer.get_vocab()
    assert generator.room(rig.questions(1)[0]) == rig.local().room(rig.questions(1)[0])


@pytest.mark.parametrize("role", ["expert", "anti"])
def test_only_the_base_may_be_remote(role: str) -> None:
    """An expert or anti behind an API is refused, with the reason."""
    with pytest.raises(RoleError, match="only the base may be behind an API"):
        ProxyGenerator(**{"base": rig.TRIO / "base", **rig.SMALL, role: "openai:small"})


def test_what_does_not_fit_is_refused_before_anything_is_asked() -> None:
    """No server, two servers, a server for a local base, settings of loading, vLLM: each is one sentence."""
    settings = RemoteSettings(model="base", base_url=URL)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (RoleError, "give its URL", {"base": "openai:base"}),
        (RoleError, "name the model", {"base": "openai:", "base_url": URL}),
        (RoleError, "pass one", {"base": settings, "base_url": "http://127.0.0.1:10/v1"}),
        (UnknownOptionError, "base='openai:<model>'", {"base": rig.TRIO / "base", "base_url": URL}),
        (RuntimeUnsupportedError, "runtime='hf'", {"base": settings, "runtime": "vllm"}),
        (UnknownOptionError, "engine_options", {"base": settings, "engine_options": {"max_num_seqs": 2}}),
    ]
    for kind, text, given in wrong:
        with pytest.raises(kind, match=text):
            ProxyGenerator(**given, **rig.SMALL)
    with pytest.raises(OptionError, match="dtype was given"):
        Role(settings, dtype="float32")


def test_settings_of_loading_are_for_the_small_models() -> None:
    """A dtype for all roles is that of expert and anti; the base is loaded by its server."""
    with rig.server() as server:
        generator = ProxyGenerator(base="openai:base", base_url=server.url, dtype="bfloat16", **rig.SMALL)
        assert [str(role.model.dtype) for role in generator.model.roles] == [
            "torch.float32",
            "torch.bfloat16",
            "torch.bfloat16",
        ]
        assert generator.generate(rig.questions(1), max_new_tokens=3)[0].finish_reason == "length"


def test_another_vocabulary_is_an_error() -> None:
    """A base whose ids mean other tokens than the small models' is found when it is connected."""
    small = [tiny.model("llama", seed, vocab_size=1252) for seed in (2, 3)]
    words = tiny.word_tokenizer([f"v{index}" for index in range(1248)])
    with rig.server() as server, pytest.raises(VocabularyError):
        ProxyGenerator("openai:base", *small, base_url=server.url, tokenizer=words)


def test_what_needs_a_cache_is_refused() -> None:
    """Beams and transformers' own generate say in one sentence what to take instead."""
    with rig.server() as server:
        generator = rig.remote(server.url)
        with pytest.raises(RuntimeUnsupportedError, match="no beam search"):
            generator.generate(rig.questions(1), num_beams=2)
        ids = generator.tokenizer(rig.questions(1), return_tensors="pt").input_ids
        with pytest.raises(RuntimeUnsupportedError, match="keeps no cache"):
            generator.model.generate(ids, max_new_tokens=2)


def test_the_composite_reads_whole_texts() -> None:
    """The composite's forward without a cache gives the local composite's logits up to a constant, padding or not."""
    with rig.server() as server:
        model, here = rig.remote(server.url).model, rig.local().model
        ids = rig.local().tokenizer(rig.questions(1), return_tensors="pt").input_ids
        found, wanted = (each(ids, logits_to_keep=3).logits.detach().log_softmax(-1) for each in (model, here))
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 1e-3
        mask = ids.new_ones(1, ids.shape[1] + 2)
        mask[:, :2] = 0
        padded = ids.new_zeros(1, ids.shape[1] + 2)
        padded[:, 2:] = ids
        shifted = model(padded, attention_mask=mask, logits_to_keep=3).logits.detach().log_softmax(-1)
        assert float((shifted - wanted).abs().max()) < 1e-3


def test_an_expert_that_the_loop_does_not_know_is_refused() -> None:
    """A base behind an API needs our loop: small models that it is not proved for are refused, with the reason."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    small = [tiny.new_model("llama", seed, vocab_size=1252, rope_parameters=rope) for seed in (2, 3)]
    with rig.server() as server, pytest.raises(RuntimeUnsupportedError, match="own decode loop"):
        ProxyGenerator("openai:base", *small, base_url=server.url, tokenizer=rig.base_tokenizer())


def test_the_folder_names_the_base_and_never_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved has model, URL and settings; nothing of the key is in any of its files."""
    monkeypatch.setenv("MY_KEY", KEY)
    with rig.server(key=KEY) as server:
        generator = rig.remote(server.url, api_key_env="MY_KEY", top_logprobs=7, max_requests=900)
        generator.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "folder").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    entry = json.loads((tmp_path / "folder" / "config.json").read_text())["base"]
    assert entry["source"] == "openai:base"
    given = {"top_logprobs": 7, "max_requests": 900, "api_key_env": "MY_KEY", "timeout_s": 20.0}
    assert entry["remote"] == {"base_url": server.url, **given}


def test_the_folder_is_read_back(tmp_path: Path) -> None:
    """`from_pretrained`, ours and transformers', restores the base and its settings."""
    with rig.server() as server:
        rig.remote(server.url, top_logprobs=9).save_pretrained(tmp_path)
        generator = ProxyGenerator.from_pretrained(tmp_path, speculation="off")
        settings = generator.model.base.remote.settings
        assert (settings.model, settings.base_url, settings.top_logprobs) == ("base", server.url, 9)
        assert generator.generate(rig.questions(1), max_new_tokens=2)[0].base_mass is not None
        assert AutoModelForCausalLM.from_pretrained(tmp_path).base.remote.settings == settings
        again = tmp_path / "again"
        generator.save_pretrained(again)
        assert json.loads((again / "config.json").read_text())["base"]["remote"]["base_url"] == server.url


def test_a_folder_alone_sends_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may come from anywhere: its server has the key only if the caller names that server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with rig.server() as server:
        rig.remote(server.url).save_pretrained(tmp_path)
        server.recorded.clear()
        ProxyGenerator.from_pretrained(tmp_path).close()
        assert server.recorded
        assert not any("Authorization" in request.headers for request in server.recorded)
        server.recorded.clear()
        ProxyGenerator.from_pretrained(tmp_path, base_url=server.url).close()
        assert {request.headers["Authorization"] for request in server.recorded} == {f"Bearer {KEY}"}


def test_a_folder_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    """Settings that do not exist, or a server for a local base, are errors that say so."""
    with rig.server() as server:
        rig.remote(server.url).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for remote in ({"base_url": URL, "key": "x"}, {"base_url": "file:///etc/passwd"}, 3):
        path.write_text(json.dumps({**config, "base": {"source": "openai:base", "remote": remote}}))
        with pytest.raises(RoleError, match="settings"):
            ProxyGenerator.from_pretrained(tmp_path)
    path.write_text(json.dumps({**config, "base": {"source": str(rig.TRIO / "base")}}))
    with pytest.raises(UnknownOptionError, match="base_url"):
        ProxyGenerator.from_pretrained(tmp_path, base_url=URL, trust_paths=True)
