"""The output folder is whole or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neft.errors import OutputError
from neft.output import check_output, whole_folder, write_record

IDENTITY = {"config": {"alpha": 5.0}}


def _check(output: Path, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    check_output(output, identity=IDENTITY, inputs=list(inputs), overwrite=overwrite)


def test_a_folder_appears_whole(tmp_path):
    """The output exists only after the block, parents are made, and nothing else is left beside it."""
    output = tmp_path / "deep" / "expert"
    with whole_folder(output) as work:
        (work / "file").write_text("new")
        assert not output.exists()
    assert (output / "file").read_text() == "new"
    assert list(output.parent.iterdir()) == [output]


def test_an_exception_leaves_the_old_folder(tmp_path):
    """After an exception, Ctrl-C included, the old content stands and the partial folder is gone."""
    output = tmp_path / "expert"
    output.mkdir()
    (output / "file").write_text("old")

    def interrupted(interruption: type[BaseException]) -> None:
        with whole_folder(output) as work:
            (work / "file").write_text("half")
            raise interruption

    for interruption in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(interruption):
            interrupted(interruption)
    assert (output / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_kill_while_saving_leaves_no_output(tmp_path):
    """A process killed in the middle of writing leaves no folder under the output's name."""
    code = (
        "import os, pathlib, signal, sys; from neft.output import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as work:\n"
        "    (work / 'model.safetensors').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "expert")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "expert").exists()
    assert all(path.name.startswith(".expert.partial-") for path in tmp_path.iterdir())


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    """Nothing of the old content is mixed into the new, and no backup is left."""
    output = tmp_path / "expert"
    output.mkdir()
    (output / "old").write_text("old")
    with whole_folder(output) as work:
        (work / "new").write_text("new")
    assert [path.name for path in output.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [output]


def test_what_may_be_written(tmp_path):
    """Absent, empty and the same run's folder are free; another run's needs overwrite; a file never is."""
    same, other, empty, file = (tmp_path / name for name in ("same", "other", "empty", "file"))
    for folder in (same, other, empty):
        folder.mkdir()
    write_record(same, {**IDENTITY, "result": {}})
    write_record(other, {"config": {"alpha": 10.0}})
    file.write_text("")
    for free in (tmp_path / "absent", empty, same):
        _check(free)
    with pytest.raises(OutputError, match="add --overwrite"):
        _check(other)
    _check(other, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        _check(file, overwrite=True)


def test_inputs_and_the_working_folder_are_never_replaced(tmp_path):
    """Overwrite does not reach the model, the data, or the folder one stands in."""
    data = tmp_path / "inside" / "rows.jsonl"
    data.parent.mkdir()
    data.write_text("")
    for output, inputs in ((data.parent, (data,)), (Path.cwd(), ()), (Path.home(), ())):
        with pytest.raises(OutputError, match="would replace"):
            _check(output, overwrite=True, inputs=inputs)
