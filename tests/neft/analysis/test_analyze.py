"""`neft analyze` on tiny models, from options to files."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

import neft
from neft.analysis.report import analysis_table
from neft.commands import analyze as command
from neft.data import read_documents, tokenize
from neft.errors import InputError, OutputError
from neft.evaluating import evaluation_loss
from neft.models import load_tokenizer

from .conftest import run_command

PLOTS = {"losses.png", "flips.png", "overlap.png", "lengths.png", "diversity.png"}


@pytest.fixture(scope="module")
def tuned(model_folder, tmp_path_factory):
    """An adapter that `neft train` made."""
    from tests.neft.conftest import copy_rows, write_rows

    folder = tmp_path_factory.mktemp("tuned")
    data = write_rows(folder / "rows.jsonl", copy_rows(24))
    config = neft.TrainingConfig(
        model=str(model_folder),
        data=data,
        output=folder / "adapter",
        max_steps=5,
        lora_r=2,
        alpha=3.0,
        show_progress=False,
        learning_rate=1e-2,
    )
    neft.train(config)
    return folder / "adapter"


@pytest.fixture
def arguments(model_folder, tuned, data_file, held_out_file, tmp_path):
    """A command line that analyses a model and an adapter."""
    files = ["--model", model_folder, "--model", tuned, "--data", data_file, "--eval-data", held_out_file]
    return [*files, "--output", tmp_path / "analysis", "--num-texts", 6, "--max-new-tokens", 4, "--flip-alphas", "2,8"]


def test_everything_is_written(arguments, tmp_path, capsys):
    """The table is on stdout and in the folder, with the JSON, five plots, and every model's texts."""
    run_command(command, arguments)
    folder = tmp_path / "analysis"
    result = json.loads((folder / "analysis.json").read_text())
    assert list(result["models"]) == ["tiny", "adapter"]
    assert capsys.readouterr().out.strip() == (folder / "table.md").read_text().strip()
    assert {path.name for path in folder.glob("*.png")} == PLOTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    texts = json.loads((folder / "models" / "adapter.json").read_text())["texts"]
    assert [len(texts[key]) for key in ("train", "held_out")] == [6, 6]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_figures_are_those_of_the_parts(arguments, model_folder, data_file, tmp_path, capsys):
    """Losses are the evaluation losses of the models, α is the training's, and the targets' lengths are theirs."""
    run_command(command, [*arguments, "--json", "--no-plots"])
    models = json.loads(capsys.readouterr().out)["models"]
    assert (models["tiny"]["alpha"], models["adapter"]["alpha"]) == (None, 3.0)
    examples = tokenize(
        read_documents(data_file, format="prompt-completion"),
        load_tokenizer(str(model_folder)),
        max_length=32,
        overlong="drop",
    ).examples
    from neft.data import PaddingCollator

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    wanted = evaluation_loss(model, examples, PaddingCollator(0), batch_size=8)
    assert models["tiny"]["train"]["loss"] == pytest.approx(wanted, abs=1e-6)
    assert models["adapter"]["train"]["loss"] < wanted
    assert models["tiny"]["train"]["num_tokens"] == 48
    assert models["tiny"]["train"]["texts"]["targets"]["num_words"] == 1
    assert set(models["tiny"]["train"]["flips"]) == {"2", "8"}
    assert not list((tmp_path / "analysis").glob("*.png"))


def test_a_finished_model_is_not_measured_again(arguments, tmp_path, capsys):
    """The second run reads the figures of the first; other options measure anew."""
    run_command(command, arguments)
    path = tmp_path / "analysis" / "models" / "tiny.json"
    record = json.loads(path.read_text())
    record["figures"]["train"]["loss"] = 123.0
    path.write_text(json.dumps(record))
    run_command(command, arguments)
    assert "123.000" in capsys.readouterr().out
    run_command(command, [*arguments, "--repetition-penalty", "1.2"])
    assert "123.000" not in capsys.readouterr().out


def test_without_texts_or_held_out_rows(model_folder, data_file, tmp_path, capsys):
    """Losses and flips alone need neither; the table says that there are no texts."""
    output = tmp_path / "analysis"
    files = ["--model", model_folder, "--data", data_file, "--output", output, "--num-texts", 0]
    run_command(command, [*files, "--max-rows", 5])
    out = capsys.readouterr().out
    assert "No texts were generated" in out
    assert "held out" not in out
    assert {path.name for path in output.glob("*.png")} == {"losses.png", "flips.png"}
    assert json.loads((output / "analysis.json").read_text())["models"]["tiny"]["train"]["num_rows"] == 5


def test_plain_text_has_losses_and_no_texts(model_folder, tmp_path, capsys):
    """A data set of texts without prompts gives losses; there is nothing to answer."""
    (tmp_path / "texts.txt").write_text("w1 w2 w3\nw4 w5 w6 w7\n")
    files = ["--model", model_folder, "--data", tmp_path / "texts.txt", "--format", "text"]
    run_command(command, [*files, "--output", tmp_path / "analysis", "--max-new-tokens", 4])
    assert "No texts were generated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--max-new-tokens", 0], "max_new_tokens is 0"),
        (["--max-new-tokens", 32], "the model reads 32 tokens with the prompt"),
        (["--num-texts", -1], "num_texts is -1"),
        (["--max-rows", 0], "max_rows is 0"),
        (["--repetition-penalty", 0], "repetition_penalty is 0"),
        (["--flip-alphas", "1,-2"], "flip_alphas has -2.0"),
        (["--model", "/nowhere/model"], "no model folder /nowhere/model"),
        (["--data", "/nowhere/rows.jsonl"], "no data file /nowhere/rows.jsonl"),
    ],
)
def test_the_users_mistakes(arguments, extra, complaint):
    """Each is an input error with the value and the way out."""
    with pytest.raises(InputError, match=complaint):
        run_command(command, [*arguments, *extra])


def test_a_broken_model_is_named(model_folder, tokenizer, data_file, tmp_path):
    """A model whose loss is not a number is an error with its name, and leaves no figures."""
    broken = AutoModelForCausalLM.from_pretrained(model_folder)
    broken.lm_head.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    files = ["--model", tmp_path / "broken", "--data", data_file, "--output", tmp_path / "analysis"]
    with pytest.raises(InputError, match="broken is nan"):
        run_command(command, files)
    assert not (tmp_path / "analysis").exists()


def test_another_folder_is_not_written_over(arguments, tmp_path):
    """A folder that holds something else needs --overwrite, and keeps what it holds."""
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match="already holds something else"):
        run_command(command, arguments)
    run_command(command, [*arguments, "--overwrite", "--no-plots"], is_quiet=True)
    assert (tmp_path / "analysis" / "thesis.txt").read_text() == "dear"


def test_the_table_warns_of_different_tokens():
    """Losses over different tokens are not to be compared, and the table says so."""
    figures = {"loss": 1.0, "flips": {}, "texts": None}
    models = {"a": {"train": {**figures, "num_tokens": 5}}, "b": {"train": {**figures, "num_tokens": 6}}}
    assert "losses cannot be compared" in analysis_table(models)
