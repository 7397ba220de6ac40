"""The output of a run: checked before the first step, and a model that stops where its data do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, TrainerCallback

from neft import InputError, TrainingConfig, merge, train, training
from neft.errors import OutputError
from neft.output import write_or_rescue
from neft.writable import ensure_writable

from .conftest import write_rows

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} w9 {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def _config(model, data, output, **options):
    return TrainingConfig(
        model=model, data=data, output=output, **{"max_steps": 1, "batch_size": 2, "show_progress": False, **options}
    )


def _edited(model_folder, folder, **values):
    shutil.copytree(model_folder, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_options_without_effect_are_left_out_and_named(model_folder, data_file, tmp_path, capsys):
    """Transformers loads a temperature without do_sample and refuses to write it; a pad_token_id of -1 likewise."""
    source = _edited(model_folder, tmp_path / "vicuna", temperature=0.9, top_p=0.6, pad_token_id=-1)
    train(_config(source, data_file, tmp_path / "out"))
    assert "temperature=0.9, top_p=0.6, pad_token_id=-1" in capsys.readouterr().err
    assert "temperature" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())


def test_what_cannot_be_repaired_ends_the_run_before_its_first_step(model_folder, data_file, tmp_path):
    """A generation config that stays refused names the file; nothing was trained and nothing is left behind."""
    source = _edited(model_folder, tmp_path / "odd", output_scores=True)
    with pytest.raises(InputError, match=r"generation_config.json; mend that file .*output_scores"):
        train(_config(source, data_file, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_that_cannot_be_written_is_found_before(model, tokenizer, tmp_path):
    """Everything but the weights is written once before the run."""
    tokenizer.init_kwargs["extra"] = object()
    with pytest.raises(InputError, match="could not be written after training, so nothing was trained"):
        ensure_writable(model, tokenizer, tmp_path / "out")


def test_a_disk_without_space_for_the_weights_is_refused(model, tokenizer, tmp_path, monkeypatch):
    """The message has both sizes and the folder."""
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("neft.writable.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"weights take .* GiB and the disk of .* has 0.0 GiB free"):
        ensure_writable(model, tokenizer, tmp_path / "out")


class _AtEnd(TrainerCallback):
    """Does something after the last step and the last evaluation."""

    def __init__(self, action):
        self.action = action

    def on_train_end(self, args, state, control, **_):
        self.action()


def _train_and_at_end(monkeypatch, config, action):
    make_loop = training.make_loop

    def with_callback(*args, **options):
        loop = make_loop(*args, **options)
        loop.add_callback(_AtEnd(action))
        return loop

    monkeypatch.setattr(training, "make_loop", with_callback)
    return train(config)


def test_an_output_that_cannot_be_written_is_rescued(model_folder, data_file, tmp_path, monkeypatch):
    """A folder that became a file while training: the error says where the very same model is instead."""
    train(_config(model_folder, data_file, tmp_path / "whole"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))

    def spoil():
        shutil.rmtree(tmp_path / "disk")
        (tmp_path / "disk").write_text("")

    with pytest.raises(
        OutputError, match=r"disk/out could not be written .*; the finished result is in .*elsewhere/out-"
    ):
        _train_and_at_end(monkeypatch, _config(model_folder, data_file, tmp_path / "disk" / "out"), spoil)
    (rescued,) = (tmp_path / "elsewhere").glob("out-*")
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", rescued)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {"neft.json", "config.json", "tokenizer.json"} <= {path.name for path in rescued.iterdir()}


def test_an_output_that_nothing_can_write_is_the_first_error(tmp_path):
    """When no directory takes it, the error is the output's, and nothing is left behind."""

    def write(folder):
        raise OSError(28, f"No space left in {folder.parent.name}")

    with pytest.raises(OSError, match=f"No space left in {tmp_path.name}"):
        write_or_rescue(tmp_path / "out", write)
    assert not list(tmp_path.iterdir())


def test_a_late_ctrl_c_does_not_take_the_finished_run(model_folder, data_file, tmp_path, monkeypatch):
    """A signal while the output is written waits for it; the handler is put back."""
    before = signal.getsignal(signal.SIGINT)
    save = PreTrainedTokenizerFast.save_pretrained

    def save_and_press(self, folder, *args, **options):
        if ".partial-" in str(folder):
            os.kill(os.getpid(), signal.SIGINT)
        return save(self, folder, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", save_and_press)
    assert train(_config(model_folder, data_file, tmp_path / "out")).steps == 1
    assert (tmp_path / "out" / "neft.json").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def chat_run(model_folder, tmp_path):
    """A chat data file whose template closes answers with w9, a special token other than the end-of-sequence."""
    source = tmp_path / "source"
    shutil.copytree(model_folder, source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["w9"]})
    tokenizer.save_pretrained(source)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    messages = [{"role": "user", "content": "w0"}, {"role": "assistant", "content": "w1"}]
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": messages}] * 4)
    return {"model": source, "data": data, "chat_template": tmp_path / "chat.jinja"}


def test_the_token_that_closes_the_answers_ends_generation(chat_run, tmp_path, capsys):
    """It joins the end tokens of the saved model, whose tokenizer has the template of the file."""
    train(_config(output=tmp_path / "out", **chat_run))
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 13]
    assert "the answers end with 'w9'" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def test_an_adapter_hands_its_end_tokens_to_the_merged_model(chat_run, tmp_path):
    """PEFT writes no generation config, so the adapter's folder has one and merge takes it over."""
    train(_config(output=tmp_path / "adapter", lora_r=2, **chat_run))
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 13]


def test_a_chat_template_file_goes_with_no_other_template(chat_run, tmp_path):
    """A template that does not read the file is refused."""
    with pytest.raises(InputError, match="and template 'vicuna' does not use it"):
        _config(output=tmp_path / "out", template="vicuna", **chat_run)


def test_rows_that_are_not_learned_are_counted_on_stderr(model_folder, tmp_path, capsys):
    """Too long, unanswered and unfit rows are named with their number, the window and the first complaint."""
    rows = [{"prompt": "w1", "completion": "w2"}] * 3
    rows += [{"prompt": "w1", "completion": " ".join(["w2"] * 40)}] * 2 + [{"prompt": "w1", "completion": 3}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    train(_config(model_folder, data, tmp_path / "out", on_bad_row="skip"))
    said = capsys.readouterr().err
    assert "2 of 6 training rows left out: longer than the window of 32 tokens (the longest has 42 tokens" in said
    assert "1 of 6 training rows skipped, they do not fit; the first: " in said
    assert "rows.jsonl, row 6 does not fit the format prompt-completion: its 'completion' is int" in said


def test_a_table_with_columns_of_other_names_trains(model_folder, tmp_path):
    """`columns` reaches the run and its record, from a CSV file."""
    (tmp_path / "gsm8k.csv").write_text("question,answer\nw1 w2,w3\nw4,w5\n")
    names = ("prompt=question", "completion=answer")
    result = train(_config(model_folder, tmp_path / "gsm8k.csv", tmp_path / "out", columns=names))
    assert result.num_rows == 2
    assert json.loads((tmp_path / "out" / "neft.json").read_text())["config"]["columns"] == list(names)
    with pytest.raises(InputError, match=r"columns has 'prompt'; give pairs"):
        _config(model_folder, tmp_path / "gsm8k.csv", tmp_path / "out", columns=("prompt",))
