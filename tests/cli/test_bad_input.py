"""What a user can get wrong: each mistake is one sentence on stderr and exit code 2, before any model is loaded."""

from pathlib import Path

import pytest

from tests.cli.console import Run, assert_refused, write_rows

_MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"


def test_missing_folder(run: Run, trio: Path) -> None:
    """A folder that does not exist is named, with its role."""
    result = run(
        "generate", "--base", trio / "no", "--expert", trio / "expert", "--anti", trio / "anti", "--prompt", "a"
    )
    assert_refused(result, "base", str(trio / "no"))


def test_folder_without_weights(run: Run, trio: Path, tmp_path: Path) -> None:
    """A folder with a config but no weights is not taken for a model."""
    (tmp_path / "config.json").write_text((trio / "base" / "config.json").read_text())
    result = run("generate", "--base", tmp_path, "--expert", trio / "expert", "--anti", trio / "anti", "--prompt", "a")
    assert_refused(result, "base", "no weights")


def test_vocabularies_that_differ(run: Run) -> None:
    """Models with equally many, but other tokens are refused, and the first differences are shown."""
    stories, dreams = _MODELS / "stories260K" / "hf", _MODELS / "aidreams260K" / "hf"
    if not stories.is_dir() or not dreams.is_dir():
        pytest.skip(f"{stories} and {dreams} are not here")
    result = run("generate", "--base", stories, "--expert", dreams, "--anti", stories, "--prompt", "a")
    assert_refused(result, "do not share token ids", "id 259")


def test_missing_role(run: Run, trio: Path) -> None:
    """Two roles out of three are refused, naming the option that lacks."""
    assert_refused(run("generate", "--base", trio / "base", "--anti", trio / "anti", "--prompt", "a"), "--expert")


def test_folder_and_roles(run: Run, trio: Path) -> None:
    """A proxy folder and a role cannot both be given."""
    result = run("generate", "--model", trio, "--base", trio / "base", "--prompt", "a")
    assert_refused(result, "--model", "--base")


def test_no_proxy_folder(run: Run, tmp_path: Path) -> None:
    """`--model` with a folder that is no proxy folder is refused."""
    assert_refused(run("generate", "--model", tmp_path, "--prompt", "a"), "no proxy folder")


def test_broken_proxy_folder(run: Run, tmp_path: Path) -> None:
    """A proxy folder whose config is no JSON is refused in one sentence."""
    (tmp_path / "config.json").write_text("{")
    assert_refused(run("generate", "--model", tmp_path, "--prompt", "a"), "config.json", str(tmp_path))


def test_unknown_quantization(run: Run, roles: list[str]) -> None:
    """Weights are loaded in 4 or 8 bits."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--expert-quantization", "3bit"), "3bit", "4bit")


def test_empty_standard_input(run: Run, roles: list[str]) -> None:
    """No prompt at all is a mistake, not an empty result."""
    assert_refused(run("generate", *roles), "standard input", "no prompt")


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_empty_prompt_file(run: Run, roles: list[str], tmp_path: Path, name: str) -> None:
    """A file without a prompt in it is refused by its name."""
    (tmp_path / name).write_text("\n")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / name), name, "no prompt")


def test_empty_prompt(run: Run, roles: list[str]) -> None:
    """An empty prompt is refused."""
    assert_refused(run("generate", *roles, "--prompt", ""), "prompt 0", "empty")


def test_empty_line_in_text(run: Run, roles: list[str], tmp_path: Path) -> None:
    """An empty line between prompts is refused with its number: skipping it would shift what follows."""
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / "a.txt"), "line 2", "empty")


def test_missing_prompt_file(run: Run, roles: list[str]) -> None:
    """A prompt file that is not there is refused by its name."""
    assert_refused(run("generate", *roles, "--prompts", "nowhere.jsonl"), "nowhere.jsonl", "No such file")


def test_torn_gzip(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A .gz file that is none is refused by its name."""
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / "a.jsonl.gz"), "a.jsonl.gz")


def test_unknown_file_kind(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A file whose ending says nothing needs --input-format."""
    (tmp_path / "a.csv").write_text("a")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / "a.csv"), "--input-format")


def test_not_utf8(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A file in another encoding is refused, naming the byte."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / "a.txt"), "UTF-8", "byte 3")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('["a"]', "a list"),
        ('"a"', "a text"),
        ("3", "a number"),
        ('{"prompt": ', "not JSON"),
        ('{"text": "a"}', '"prompt"'),
        ('{"prompt": "a", "messages": []}', "either"),
        ('{"prompt": null}', "null"),
        ('{"prompt": ""}', "empty"),
        ('{"prompt": [-1]}', "-1"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "message 0"),
        ('{"prompt": "a", "alpha": NaN}', "nan"),
        ('{"prompt": "a", "alpha": "1"}', "alpha"),
        ('{"prompt": "a", "seed": 1.5}', "seed"),
        ('{"prompt": "\\ud800"}', "surrogate"),
    ],
)
def test_bad_jsonl_line(run: Run, roles: list[str], tmp_path: Path, line: str, part: str) -> None:
    """A row that cannot be used is refused with its line number, blank lines counted."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "fine"}\n\n' + line + "\n")
    assert_refused(run("generate", *roles, "--prompts", tmp_path / "a.jsonl"), "line 3", part)


@pytest.mark.parametrize("alpha", ["nan", "inf", "-inf"])
def test_alpha_not_finite(run: Run, roles: list[str], alpha: str) -> None:
    """α must be a finite number."""
    assert_refused(run("generate", *roles, "--prompt", "a", f"--alpha={alpha}"), "alpha", alpha)


@pytest.mark.parametrize("temperature", ["-1", "nan"])
def test_bad_temperature(run: Run, roles: list[str], temperature: str) -> None:
    """A temperature below 0, or none at all, is refused."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--temperature", temperature), "temperature", "0 or more")


@pytest.mark.parametrize("top_p", ["0", "-0.5", "1.5"])
def test_top_p_out_of_range(run: Run, roles: list[str], top_p: str) -> None:
    """top_p lies in (0, 1]."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--top-p", top_p), "top_p", "(0, 1]")


def test_not_a_number(run: Run, roles: list[str]) -> None:
    """Argparse's own complaints take the same form."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--top-k", "many"), "--top-k", "many", "--help")


def test_unknown_option(run: Run, roles: list[str]) -> None:
    """An unknown option is refused with the nearest known one, never ignored."""
    result = run("generate", *roles, "--prompt", "a", "--temprature", "1")
    assert_refused(result, "--temprature", "--temperature")


def test_unknown_command(run: Run) -> None:
    """An unknown command is refused with those there are."""
    assert_refused(run("generete"), "generete", "generate")


def test_unknown_output_format(run: Run, roles: list[str]) -> None:
    """The output is jsonl or text."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--format", "xml"), "xml")


def test_unknown_prompt_format(run: Run, roles: list[str]) -> None:
    """A prompt format that does not exist is refused with those that do."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--expert-prompt", "lama"), "'lama'", "alpaca")


def test_unknown_dtype(run: Run, roles: list[str]) -> None:
    """A dtype of one role that does not exist is refused."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--anti-dtype", "float33"), "float33")


def test_bad_device_map(run: Run, roles: list[str]) -> None:
    """A device map that begins as JSON must be JSON."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--device-map", "{cpu"), "{cpu")


def test_output_in_missing_folder(run: Run, roles: list[str], tmp_path: Path) -> None:
    """An output that cannot be written is found before the models load: the base's weights need not even be any."""
    output = tmp_path / "no" / "a.jsonl"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    result = run("generate", "--base", tmp_path, *roles[2:], "--prompt", "a", "--output", output)
    assert_refused(result, "cannot write", str(output))


def test_output_is_a_folder(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A folder is no output file."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--output", tmp_path), str(tmp_path), "folder")


def test_full_device(run: Run, roles: list[str]) -> None:
    """A write that fails in the middle is an output error too."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    result = run("generate", *roles, "--prompt", "a", "--max-new-tokens", 2, "--output", "/dev/full")
    assert_refused(result, "cannot write", "No space left")


def test_existing_output(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A file that is there is left alone, and both ways on are named."""
    (tmp_path / "a.jsonl").write_text("mine")
    result = run("generate", *roles, "--prompt", "a", "--output", tmp_path / "a.jsonl")
    assert_refused(result, "--resume", "--overwrite")
    assert (tmp_path / "a.jsonl").read_text() == "mine"


def test_failed_run_leaves_no_file(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A run that fails while the models load leaves no empty output, and an old one to be replaced stays whole."""
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text("mine")
    for arguments in (["--output", new], ["--output", old, "--overwrite"]):
        assert_refused(run("generate", "--base", "/nowhere", *roles[2:], "--prompt", "a", *arguments), "/nowhere")
    assert not new.exists()
    assert old.read_text() == "mine"


def test_resume_without_file(run: Run, roles: list[str]) -> None:
    """Standard output cannot be gone on with."""
    assert_refused(run("generate", *roles, "--prompt", "a", "--resume"), "--output")


def test_prompt_too_long(run: Run, roles: list[str]) -> None:
    """A prompt longer than the context names the role and the limit."""
    assert_refused(run("generate", *roles, "--prompt", "x" * 500), "prompt 0", "160")


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "continuation": ""}, {"continuation": "a"}])
def test_score_row_incomplete(run: Run, roles: list[str], tmp_path: Path, row: dict[str, str]) -> None:
    """A row to score needs a prompt and a continuation."""
    assert_refused(run("score", *roles, "--prompts", write_rows(tmp_path / "a.jsonl", [row])), "line 1")


def test_save_into_full_folder(run: Run, roles: list[str], trio: Path) -> None:
    """A folder that holds something is not written into."""
    assert_refused(run("save", *roles, "--output", trio), str(trio), "--overwrite")


def test_save_under_a_file(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A folder that cannot be made is refused before the models load."""
    (tmp_path / "file").write_text("")
    assert_refused(run("save", *roles, "--output", tmp_path / "file" / "x"), "cannot write")


def test_demo_output(run: Run, tmp_path: Path) -> None:
    """The demo, too, looks at its output first."""
    assert_refused(run("demo", "--output", tmp_path / "no" / "a.txt"), "cannot write")
