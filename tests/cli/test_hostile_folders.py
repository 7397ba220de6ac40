"""A sample of damaged and hostile folders through the command: exit code 2, nothing on stdout, one line on stderr."""

import shutil
from pathlib import Path

import pytest

from tests.cli.console import Run, assert_refused
from tests.hostile.proxies import name_absolutely
from tests.hostile.test_hostile_folders import ADAPTER, HARMLESS, LIMIT_S, MODEL, PROXY

_ROW = '{"prompt": "w1", "continuation": " w2"}\n'
_STEP = 11  # of the tables, so that every kind of change is among the sample
SAMPLE = [
    (kind, name)
    for kind, cases in (("anti", MODEL), ("expert", ADAPTER), ("model", PROXY))
    for name in [*cases][::_STEP]
    if name not in HARMLESS
]


@pytest.mark.timeout(2 * LIMIT_S)  # two commands
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), SAMPLE)
def test_one_line_and_exit_code_2(
    run: Run, folders: dict[str, Path], tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generating and scoring."""
    monkeypatch.setenv("HOSTILE_MARK", str(tmp_path / "code-ran"))
    source = folders["lora" if kind == "expert" else "anti"]
    if kind == "model":
        source = tmp_path / "proxy"
        roles = [part for role in ("base", "expert", "anti") for part in (f"--{role}", folders[role])]
        assert run("save", *roles, "--output", source).code == 0
        name_absolutely(source)
    case = tmp_path / "case"
    shutil.copytree(source, case)
    {"anti": MODEL, "expert": ADAPTER, "model": PROXY}[kind][name](case)
    given = {"base": folders["base"], "expert": folders["expert"], "anti": folders["anti"], kind: case}
    names = ("model",) if kind == "model" else ("base", "expert", "anti")
    roles = [part for role in names for part in (f"--{role}", given[role])]
    assert_refused(run("generate", *roles, "--prompt", "w1", "--max-new-tokens", "2"))
    assert_refused(run("score", *roles, stdin=_ROW))
    assert not (tmp_path / "code-ran").exists()


def test_sound_folders_are_taken(run: Run, folders: dict[str, Path]) -> None:
    """The same commands over what was not changed."""
    for expert in ("expert", "lora"):
        roles = ["--base", folders["base"], "--expert", folders[expert], "--anti", folders["anti"]]
        assert run("generate", *roles, "--prompt", "w1", "--max-new-tokens", "2").code == 0
        assert run("score", *roles, stdin=_ROW).code == 0
