"""Proxy folders that travel: moved with their roles, loaded by programs that do not know proxytune, pushed, pulled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxytune import ProxyGenerator, ProxyTunedForCausalLM
from proxytune.errors import ProxyTuneError, RoleError, RoleNotFoundError
from tests.fake_hub import FakeHub
from tests.test_proxy_folder import ids_of, trio_of

_LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "proxytune" not in sys.modules
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = AutoTokenizer.from_pretrained(folder)("w5 w6 w7", return_tensors="pt").input_ids
print(model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, ids.shape[1]:].tolist())
"""


_WITHOUT_PROXYTUNE = """
import sys, importlib.abc
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "proxytune":
            raise ModuleNotFoundError("No module named 'proxytune'", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def saved(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A proxy folder beside its roles."""
    for name in ("base", "expert", "anti"):
        shutil.copytree(folders[name], tmp_path / "here" / name)
    roles = [tmp_path / "here" / name for name in ("base", "expert", "anti")]
    ProxyGenerator(*roles, alpha=0.7).save_pretrained(tmp_path / "here" / "proxy")
    return tmp_path / "here" / "proxy"


def _python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_folder_moves_with_its_siblings(saved: Path, tmp_path: Path) -> None:
    """Roles beside the folder are named relative to it, so all may be moved together."""
    before = ids_of(ProxyGenerator.from_pretrained(saved))
    (tmp_path / "here").rename(tmp_path / "there")
    assert ids_of(ProxyGenerator.from_pretrained(tmp_path / "there" / "proxy")) == before
    assert str(tmp_path) not in (tmp_path / "there" / "proxy" / "config.json").read_text()


def test_folder_moves_alone_from_far_roles(folders: dict[str, Path], tmp_path: Path) -> None:
    """Roles elsewhere are named absolutely, so the folder may be moved without them."""
    first = ProxyGenerator(*trio_of(folders))
    first.save_pretrained(tmp_path / "one" / "proxy")
    (tmp_path / "one" / "proxy").rename(tmp_path / "moved")
    assert ids_of(ProxyGenerator.from_pretrained(tmp_path / "moved")) == ids_of(first)


def test_paths_out_of_it_are_followed_when_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    """Far roles in a folder that somebody else wrote need trust_paths, in transformers too; one's own save does not."""
    first = ProxyGenerator(*trio_of(folders))
    first.save_pretrained(tmp_path / "one" / "proxy")
    config = tmp_path / "one" / "proxy" / "config.json"
    entry = json.loads(config.read_text())
    for foreign in ({"path_mark": None}, {"path_mark": "0" * 64}, {"base": {"source": "../../../../private"}}):
        config.write_text(json.dumps(entry | foreign))
        with pytest.raises(RoleError, match="outside it that you have not saved here"):
            ProxyGenerator.from_pretrained(config.parent)
    config.write_text(json.dumps(entry | {"path_mark": None}))
    assert ids_of(ProxyGenerator.from_pretrained(config.parent, trust_paths=True)) == ids_of(first)
    assert ProxyTunedForCausalLM.from_pretrained(config.parent, trust_paths=True).config.path_mark is None


def test_transformers_loads_it_without_our_import(saved: Path, tmp_path: Path) -> None:
    """A program that imports transformers only gets the composite, and the tokens of ours."""
    done = _python(_LOAD, saved, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    expected = ProxyGenerator.from_pretrained(saved).generate("w5 w6 w7", max_new_tokens=8, ignore_eos=True)
    assert json.loads(done.stdout) == list(expected[0].token_ids)


def test_missing_proxytune_is_told(saved: Path, tmp_path: Path) -> None:
    """Where proxytune is not installed, transformers says that it is what is missing."""
    done = _python(_WITHOUT_PROXYTUNE + _LOAD, saved, HF_HOME=str(tmp_path / "home"))
    assert done.returncode != 0
    assert "pip install proxytune" in done.stderr


def test_card_tells_what_it_is(saved: Path) -> None:
    """The card has roles, α, rule and formats; one that somebody wrote is kept."""
    card = (saved / "README.md").read_text()
    for part in ("proxy-tuning", "`../base`", "`../expert`", "α = 0.7", "rule `proxy`", "expert `raw`"):
        assert part in card
    (saved / "README.md").write_text("mine")
    ProxyGenerator.from_pretrained(saved).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


def test_other_models_are_no_proxy_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model's folder is told from a proxy folder by its model_type, and a missing one by its absence."""
    with pytest.raises(RoleError, match="its model_type is 'llama'"):
        ProxyGenerator.from_pretrained(folders["base"])
    with pytest.raises(RoleNotFoundError, match="there is no such folder"):
        ProxyGenerator.from_pretrained(tmp_path / "none")


def test_local_roles_are_not_pushed(saved: Path) -> None:
    """A folder of this machine is of no use to others, and its path is not theirs to read."""
    with pytest.raises(RoleError, match="a folder of this machine: push that model"):
        ProxyGenerator.from_pretrained(saved).push_to_hub("me/proxy")


_PUSH = """
import sys
from proxytune import ProxyGenerator
print(ProxyGenerator("me/base", "me/expert", "me/anti", alpha=0.7).push_to_hub("me/proxy", token="hf_x"))
"""
_PULL = """
import sys
from proxytune import ProxyGenerator
generator = ProxyGenerator.from_pretrained("me/proxy")
[done] = generator.generate("w5 w6 w7", max_new_tokens=8, ignore_eos=True)
print(list(done.token_ids), generator.model.config.alphas)
"""


def _uploaded(hub: FakeHub, folders: dict[str, Path]) -> None:
    for name in ("base", "expert", "anti"):
        hub.files[f"me/{name}"] = {file.name: file.read_bytes() for file in folders[name].iterdir()}


def test_push_and_pull(folders: dict[str, Path], tmp_path: Path) -> None:
    """What one machine pushes another gets by its name, with models by theirs, and gives the same tokens."""
    with FakeHub() as hub:
        _uploaded(hub, folders)
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}
        pushed = _python(_PUSH, HF_HOME=str(tmp_path / "one"), **environment)
        assert pushed.returncode == 0, pushed.stderr
        assert {"config.json", "README.md", "modeling_proxytune.py", "tokenizer.json"} <= set(hub.files["me/proxy"])
        assert "- me/base" in hub.files["me/proxy"]["README.md"].decode()
        pulled = _python(_PULL, HF_HOME=str(tmp_path / "two"), **environment)
        assert pulled.returncode == 0, pulled.stderr
    # The hub is gone: what is in the cache is taken from there, and what is not is told, without its client's retries.
    again = _python(_PULL, HF_HOME=str(tmp_path / "two"), **environment)
    assert (again.stdout, "Retry" in again.stderr) == (pulled.stdout, False), again.stderr
    nowhere = _python(_PULL, HF_HOME=str(tmp_path / "three"), **environment)
    assert "the proxy folder is 'me/proxy': no folder here, and not in the hub's cache" in nowhere.stderr
    assert "Retry" not in nowhere.stderr
    expected = ids_of(ProxyGenerator(*trio_of(folders), alpha=0.7))
    assert pulled.stdout.strip() == f"{list(expected)} (0.7,)"


def test_pulled_folder_reads_nothing_else_here(folders: dict[str, Path], saved: Path, tmp_path: Path) -> None:
    """A folder from the hub that names a path of this machine is refused, relative or not."""
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    for source in (str(folders["base"]), "../../../../../../private"):
        entry = json.loads(files["config.json"]) | {"base": {"source": source}}
        with FakeHub() as hub:
            hub.files["me/proxy"] = {**files, "config.json": json.dumps(entry).encode()}
            environment = {
                "HF_ENDPOINT": hub.url,
                "HF_HUB_OFFLINE": "",
                "HF_HOME": str(tmp_path / "home" / source[-4:]),
            }
            done = _python(_PULL, **environment)
        assert "a path on this machine outside it" in done.stderr.splitlines()[-1]
        assert ProxyTuneError.__module__ in done.stderr
