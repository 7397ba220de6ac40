"""`proxytune` as a model of lm-evaluation-harness equals the harness's own HFLM, on one model and on the composite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import ContextLengthError, InputError, OptionError
from tests import tiny
from tests.conftest import DATA

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'proxytune[bench]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.tasks.lm_eval.__main__ import register
from benchmarks.tasks.lm_eval.model import ProxyTuneLM, response_cache

LONG = "One day. " * 250
PAIRS = [
    ("Once upon a time there was a", " little girl"),
    ("Once upon a time there was a", " dog named Max."),
    ("She went to the ", "park"),
    ("", "The sun was bright."),
    (LONG, "She was happy."),  # longer than the context: its start is cut off
    ("The end", "."),
]
TEXTS = ["Tom and Lily were friends.", "They like to play. " * 90]


@dataclass(frozen=True)
class Models:
    """The same weights as the harness loads them and as we do."""

    theirs: Any
    ours: ProxyTuneLM


@pytest.fixture(scope="module")
def trio(readers: dict[str, Path]) -> ProxyGenerator:
    """A random trio that reads bytes, float32."""
    return ProxyGenerator(*(str(readers[role]) for role in ("base", "expert", "anti")), dtype="float32")


@pytest.fixture(scope="module")
def single() -> Models:
    """stories260K, float32."""
    folder = DATA / "models/stories260K/hf"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    generator = ProxyGenerator(*[str(folder)] * 3, alpha=0.0, dtype="float32")
    return Models(_hflm(pretrained=str(folder)), ProxyTuneLM(generator, batch_size=4))


@pytest.fixture(scope="module")
def steered(trio: ProxyGenerator) -> Models:
    """The composite of the tiny trio: for the harness an ordinary transformers model."""
    theirs = _hflm(pretrained=trio.model, tokenizer=trio.tokenizer)
    return Models(theirs, ProxyTuneLM(trio, batch_size=4))


@pytest.fixture
def ours(trio: ProxyGenerator) -> ProxyTuneLM:
    """The tiny trio alone."""
    return ProxyTuneLM(trio, batch_size=4)


def _hflm(**given: Any) -> Any:
    return HFLM(**given, dtype="float32", device="cpu", batch_size=4, softmax_dtype="float32")


def _requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


@pytest.mark.parametrize("which", ["single", "steered"])
def test_loglikelihoods_equal_hflm(which: str, request: pytest.FixtureRequest) -> None:
    """Log-probabilities agree to 1e-4 nats and greediness exactly: with, without, and with too much context."""
    models: Models = request.getfixturevalue(which)
    mine = models.ours.loglikelihood(_requests("loglikelihood", PAIRS))
    theirs = models.theirs.loglikelihood(_requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [logprob for logprob, _ in mine] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)
    assert [is_greedy for _, is_greedy in mine] == [bool(is_greedy) for _, is_greedy in theirs]


@pytest.mark.parametrize("which", ["single", "steered"])
def test_whole_texts_equal_hflm(which: str, request: pytest.FixtureRequest) -> None:
    """Log-probabilities of texts agree with HFLM's to 1e-4 per window, those longer than the context as well."""
    models: Models = request.getfixturevalue(which)
    asked = _requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    theirs = models.theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert models.ours.loglikelihood_rolling(asked) == pytest.approx(theirs, rel=1e-6, abs=1e-4)


def test_texts_equal_hflm(single: Models) -> None:
    """Greedy texts up to a stop are HFLM's, whatever the options' grouping, and from contexts that are cut."""
    options = [{"until": ["."], "max_gen_toks": 40}, {"until": [" the", "\n"], "do_sample": False, "max_gen_toks": 9}]
    asked = [(context, given) for context in ("Once upon a time", LONG, "Lily") for given in options]
    mine = single.ours.generate_until(_requests("generate_until", asked))
    assert mine == single.theirs.generate_until(_requests("generate_until", asked), disable_tqdm=True)
    assert all(mine)


def test_alpha_zero_is_the_base(trio: ProxyGenerator, readers: dict[str, Path]) -> None:
    """At α = 0 the trio's log-probabilities are those that HFLM finds for the base alone; at α = 1 they are not."""
    base = _hflm(pretrained=str(readers["base"])).loglikelihood(_requests("loglikelihood", PAIRS), disable_tqdm=True)
    found = {
        alpha: ProxyTuneLM(trio, alpha=alpha).loglikelihood(_requests("loglikelihood", PAIRS)) for alpha in (0.0, 1.0)
    }
    assert [logprob for logprob, _ in found[0.0]] == pytest.approx([logprob for logprob, _ in base], abs=1e-4)
    assert [logprob for logprob, _ in found[1.0]] != pytest.approx([logprob for logprob, _ in base], abs=1e-2)


def test_requests_that_are_cut_are_known(single: Models) -> None:
    """Exactly the requests whose context is too long are called truncated; a continuation that alone is, is refused."""
    assert [single.ours.is_truncated(pair) for pair in PAIRS] == [False, False, False, False, True, False]
    asked = [("One day. " * 60, {"until": [], "max_gen_toks": count}) for count in (40, 400)]
    lengths = [len(single.ours.tok_encode(context)) + options["max_gen_toks"] for context, options in asked]
    assert [single.ours.is_truncated(args) for args in asked] == [length > 512 for length in lengths] == [False, True]
    with pytest.raises(ContextLengthError, match="512"):
        single.ours.loglikelihood(_requests("loglikelihood", [("a", LONG)]))


def test_special_tokens_end_a_text(ours: ProxyTuneLM) -> None:
    """A special token among the stops ends a text, although the text does not show it."""
    ids = ours.tok_encode("ab<unk>cd", add_special_tokens=False)
    assert ours._text(ids, ["<unk>"]) == "ab"
    assert ours._text(ids, ["c"]) == "ab"
    assert ours._text(ids, []) == "abcd"


def test_sampled_texts_repeat_and_differ(ours: ProxyTuneLM) -> None:
    """Repeats of one context differ from each other, and a second run gives the same texts in whatever company."""
    options = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 6}
    first = ours.generate_until(_requests("generate_until", [("Hello", options)] * 2))
    again = ours.generate_until(_requests("generate_until", [("Other", options), *[("Hello", options)] * 2]))
    assert first[0] != first[1]
    assert again[1:] == first


def test_unknown_options_are_refused(ours: ProxyTuneLM) -> None:
    """An option without counterpart is an error that names it, and those there are."""
    with pytest.raises(OptionError, match=r"'typical_p'.*temperature"):
        ours.generate_until(_requests("generate_until", [("a", {"until": [], "typical_p": 0.5, "max_gen_toks": 2})]))


def test_roles_read_their_own_formats(trio: ProxyGenerator, readers: dict[str, Path]) -> None:
    """With prompt formats each role reads the context in its own, as in `score`; texts without one are refused."""
    formats = {"base_prompt": "{prompt} =", "expert_prompt": "Q: {prompt}", "anti_prompt": "{prompt} ="}
    formatted = ProxyGenerator(*(str(readers[role]) for role in ("base", "expert", "anti")), dtype="float32", **formats)
    lm = ProxyTuneLM(formatted)
    [(found, _)] = lm.loglikelihood(_requests("loglikelihood", [("two and two ", "four")]))
    assert found == pytest.approx(formatted.score("two and two", " four")[0].total, abs=1e-5)
    assert found != pytest.approx(trio.score("two and two", " four")[0].total, abs=1e-2)
    for kind, args in (("loglikelihood", ("", "four")), ("loglikelihood_rolling", ("four",))):
        with pytest.raises(OptionError, match="raw"):
            getattr(lm, kind)(_requests(kind, [args]))


def test_the_harness_makes_the_model_by_name(readers: dict[str, Path]) -> None:
    """Once registered, `proxytune` is made from the harness's model arguments."""
    from lm_eval.api.registry import get_model

    register()
    roles = ",".join(f"{role}={readers[role]}" for role in ("base", "expert", "anti"))
    made = get_model("proxytune").create_from_arg_string(
        f"{roles},alpha=0.5,dtype=float32,max_length=64", {"batch_size": 2, "max_batch_size": None, "device": "cuda:0"}
    )
    assert (made.batch_size, made.max_length, made.generator.model.config.alphas) == (2, 64, (0.5,))
    assert made.get_model_info()["proxytune"]["pairs"][0]["expert"]["sha256"]
    with pytest.raises(OptionError, match="batch_size is 'auto'"):
        get_model("proxytune").create_from_arg_string(roles, {"batch_size": "auto"})


def test_the_harness_s_own_model_reads_a_proxy_folder(trio: ProxyGenerator, tmp_path: Path) -> None:
    """HFLM makes the composite from its folder by name, without code of ours, and finds what ours finds."""
    trio.save_pretrained(tmp_path / "folder")
    asked = _requests("loglikelihood", PAIRS)
    theirs = _hflm(pretrained=str(tmp_path / "folder"), trust_remote_code=True).loglikelihood(asked, disable_tqdm=True)
    found = ProxyTuneLM(trio).loglikelihood(asked)
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)


def test_the_cache_knows_what_decides_an_answer(trio: ProxyGenerator, readers: dict[str, Path], tmp_path: Path) -> None:
    """Another α, expert or format has another cache, the same models the same one; nameless models have none."""

    def made(**changes: Any) -> ProxyTuneLM:
        roles = {role: str(readers[role]) for role in ("base", "expert", "anti")}
        return ProxyTuneLM(ProxyGenerator(**{**roles, "dtype": "float32", **changes}))

    same = {response_cache(tmp_path, ProxyTuneLM(trio)), response_cache(tmp_path, made())}
    others = [made(alpha=0.5), made(expert=str(readers["tuned"])), made(expert_prompt="Q: {prompt}")]
    others += [ProxyTuneLM(trio, alpha=2.0), ProxyTuneLM(trio, max_length=99)]
    assert len(same) == 1
    assert len(same | {response_cache(tmp_path, lm) for lm in others}) == 1 + len(others)
    assert same.pop().startswith(str(tmp_path))
    nameless = ProxyTuneLM(tiny.generator())
    with pytest.raises(InputError, match="folder"):
        response_cache(tmp_path, nameless)
