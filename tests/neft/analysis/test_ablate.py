"""`neft ablate` on a tiny model, and the paper's direction."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from neft.analysis.losses import document_losses, mean_loss
from neft.analysis.sources import load_subject
from neft.commands import ablate as command
from neft.config import TrainingConfig
from neft.errors import InputError, OutputError

from .conftest import run_command

ROOT = Path(__file__).parents[3]


@pytest.fixture
def arguments(model_folder, data_file, held_out_file, tmp_path):
    """A command line of a grid of two strengths, two distributions and two seeds: six runs of two steps."""
    files = ["--model", model_folder, "--data", data_file, "--eval-data", held_out_file, "--output", tmp_path / "grid"]
    grid = ["--alphas", "0,5", "--noise", "uniform,gaussian", "--seeds", 2]
    return [*files, *grid, "--max-steps", 2, "--batch-size", 8, "--learning-rate", "1e-2"]


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/cell.json")}


def test_a_grid_from_options_to_files(arguments, tmp_path, capsys):
    """Six folders with models, one table with intervals on stdout and in the folder, JSON, lengths and the plot."""
    run_command(command, [*arguments, "--num-texts", 4, "--max-new-tokens", 3, "--plot"])
    folder = tmp_path / "grid"
    assert len(list(folder.glob("cells/*/model/model.safetensors"))) == 6
    out = capsys.readouterr().out
    assert out.strip() == (folder / "table.md").read_text().strip()
    assert out.count("±") >= 3 * 4
    assert "characters" in out
    record = json.loads((folder / "ablation.json").read_text())
    assert [(row["alpha"], row["noise"]) for row in record["summary"]] == [
        (0.0, "none"),
        (5.0, "uniform"),
        (5.0, "gaussian"),
    ]
    assert len(record["cells"]) == record["num_cells"] == 6
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_is_a_run_of_its_own(arguments, data_file, held_out_file, tmp_path, capsys):
    """A cell's figures are the noise-free losses of the model in its folder."""
    run_command(command, [*arguments, "--json"])
    cells = {cell["name"]: cell["metrics"] for cell in json.loads(capsys.readouterr().out)["cells"]}
    name = "alpha-5_gaussian_seed-1"
    folder = tmp_path / "grid" / "cells" / name / "model"
    assert json.loads((folder / "neft.json").read_text())["config"]["noise"] == "gaussian"
    config = TrainingConfig(model=str(folder), data=data_file, eval_data=held_out_file, output=tmp_path)
    subject = load_subject(config)
    for key, part in (("train_loss", subject.train), ("eval_loss", subject.held_out)):
        losses = document_losses(subject.model, part.data.examples, subject.collator, batch_size=4)
        assert cells[name][key] == pytest.approx(mean_loss(losses), abs=1e-5)
    assert len({metrics["train_loss"] for metrics in cells.values()}) == 6


def test_finished_cells_are_not_run_again(arguments, tmp_path):
    """A second run touches no cell; a cell whose file is gone is measured again, without training; more seeds add."""
    run_command(command, arguments, is_quiet=True)
    folder = tmp_path / "grid"
    before = _times(folder)
    run_command(command, arguments, is_quiet=True)
    assert _times(folder) == before
    lost = folder / "cells" / "alpha-5_uniform_seed-0"
    weights = (lost / "model" / "model.safetensors").stat().st_mtime_ns
    figures = (lost / "cell.json").read_text()
    (lost / "cell.json").unlink()
    run_command(command, [*arguments, "--seeds", 3], is_quiet=True)
    assert (lost / "cell.json").read_text() == figures
    assert (lost / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert len(_times(folder)) == 9


def test_other_options_do_not_mix_into_a_grid(arguments, tmp_path):
    """A grid with another learning rate is refused in the same folder, and replaces the cells under --overwrite."""
    run_command(command, [*arguments, "--discard-models"], is_quiet=True)
    assert not list((tmp_path / "grid").glob("cells/*/model"))
    other = [*arguments, "--learning-rate", "1e-3"]
    with pytest.raises(OutputError, match="a cell of other options"):
        run_command(command, other, is_quiet=True)
    before = _times(tmp_path / "grid")
    run_command(command, [*other, "--overwrite"], is_quiet=True)
    assert not set(_times(tmp_path / "grid").items()) & set(before.items())


def test_a_run_that_diverges_does_not_end_the_grid(arguments, tmp_path, capsys):
    """Every cell fails by its learning rate; each is recorded with its reason, and the table counts them."""
    run_command(command, [*arguments, "--learning-rate", "1e30", "--schedule", "constant", "--max-steps", 5])
    assert "0 (+2 diverged)" in capsys.readouterr().out
    cells = json.loads((tmp_path / "grid" / "ablation.json").read_text())["cells"]
    assert all("lower learning_rate" in cell["failure"] for cell in cells)


def _interrupt_after_first_step(folder):
    """Sends this process Ctrl-C once a run has logged a step."""
    give_up_s = time.monotonic() + 60
    while time.monotonic() < give_up_s:
        if any(path.stat().st_size for path in folder.glob("cells/*/model.partial/log.jsonl")):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.005)


def test_an_interrupted_grid_goes_on(arguments, tmp_path):
    """Ctrl-C within a run leaves no finished cell; the same command then ends with an unbroken grid's figures."""
    one_run = [*arguments, "--alphas", "5", "--noise", "uniform", "--seeds", 1, "--max-steps", 40, "--log-every", 1]
    watcher = threading.Thread(target=_interrupt_after_first_step, args=(tmp_path / "grid",))
    watcher.start()
    with pytest.raises(KeyboardInterrupt, match="every finished run is kept, and the same command goes on"):
        run_command(command, one_run, is_quiet=True)
    watcher.join()
    assert not list((tmp_path / "grid").glob("cells/*/cell.json"))
    run_command(command, one_run, is_quiet=True)
    run_command(command, [*one_run, "--output", tmp_path / "unbroken"], is_quiet=True)
    found = [json.loads((tmp_path / name / "ablation.json").read_text())["cells"] for name in ("grid", "unbroken")]
    assert found[0] == found[1]


def test_several_processes_are_refused(arguments, monkeypatch):
    """Under a launcher every process would write the same folders, so a grid refuses to start."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a grid runs in one process"):
        run_command(command, arguments)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--noise", "pink"], "noise has 'pink'"),
        (["--alphas", "0,-5"], "alphas has -5.0"),
        (["--seeds", 0], "seeds is 0"),
        (["--data", "/nowhere/rows.jsonl"], "no data file /nowhere/rows.jsonl"),
    ],
)
def test_the_users_mistakes(arguments, extra, complaint):
    """Each is an input error with the value."""
    with pytest.raises(InputError, match=complaint):
        run_command(command, [*arguments, *extra])


def test_another_folder_is_not_written_over(arguments, tmp_path):
    """A folder that holds something else needs --overwrite."""
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match="already holds something else"):
        run_command(command, arguments)


@pytest.mark.slow
def test_the_papers_direction(tmp_path):
    """Three seeds: in each, noise-free train loss rises and held-out loss falls from α = 0 to 2 and from 2 to 5.

    Over the seeds, the 95 % intervals of the held-out change exclude zero.
    """
    spec = importlib.util.spec_from_file_location("neft_direction", ROOT / "benchmarks" / "neft_direction.py")
    direction = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(direction)
    ablation = direction.run(tmp_path, show=False)
    metrics = {(result.cell.alpha, result.cell.seed): result.metrics for result in ablation.results}
    for seed in range(3):
        train, held_out = ([metrics[a, seed][key] for a in (0.0, 2.0, 5.0)] for key in ("train_loss", "eval_loss"))
        assert train[0] < train[1] < train[2]
        assert held_out[0] > held_out[1] > held_out[2]
    for summary in ablation.summaries[1:]:
        change = summary.metrics["eval_loss_change"]
        assert change.num_values == 3
        assert change.mean + change.half_width < 0
