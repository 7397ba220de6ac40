"""No network, one thread, no bars; folders of tiny models that every test may read."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers

from tests import tiny

torch.set_num_threads(1)
# A shell that runs the tests in the background has them, and every process they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
transformers.utils.logging.disable_progress_bar()

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
_TOGETHER = ("tests/serve/", "tests/remote/test_vllm_")  # their servers take half a minute to start
_APART = "tests/hf/test_families.py"  # minutes, and nothing is shared
_LOOPBACK = ("127.", "::1", "localhost")


@pytest.hookimpl(trylast=True)  # when the folders have set their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what starts engines: it takes longest."""
    items.sort(key=lambda item: item.get_closest_marker("vllm") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, to the same one files that share a server, and the families one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path == _APART:
                return nodeid
            return next((together for together in _TOGETHER if path.startswith(together)), path)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test reach this machine and nothing else."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise OSError(f"tests have no network: connection to {address!r} refused")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def data() -> Path:
    """The shared data folder, which is beside the repository; a checkout without it skips the test."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved base, expert, anti (with the word tokenizer) and `lora`, an adapter over that anti."""
    root = tmp_path_factory.mktemp("models")
    for name, model in zip(("base", "expert", "anti"), tiny.trio(), strict=True):
        model.save_pretrained(root / name)
        tiny.word_tokenizer().save_pretrained(root / name)
    save_adapter(root / "anti", root / "lora", seed=5)
    return {name: root / name for name in ("base", "expert", "anti", "lora")}


def save_adapter(anti: Path, folder: Path, *, seed: int, std: float = 0.4) -> None:
    """Save a LoRA adapter over a saved model, with random weights on both sides (a new one's product is zero)."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(anti)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]))
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=std, generator=draws)
    adapted.save_pretrained(folder)
