"""`proxytune generate`: what comes in, what goes out, and in which order."""

import gzip
import json
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from tests.cli.console import Run, write_rows

PROMPTS = ["Once upon a time", "Who", "A small town", "Who lives there? A baker"]


@pytest.fixture
def expected(trio: Path) -> list[str]:
    """What the engine itself says to the prompts, greedily, in eight tokens."""
    generator = ProxyGenerator(base=str(trio / "base"), expert=str(trio / "expert"), anti=str(trio / "anti"))
    return [done.text for done in generator.generate(PROMPTS, max_new_tokens=8)]


def test_rows_on_stdout(run: Run, roles: list[str], expected: list[str]) -> None:
    """Standard output holds one JSON row per prompt, in order, though long prompts are done first, and nothing else."""
    options = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    result = run("generate", *roles, *options, "--max-new-tokens", 8, "--batch-size", 1)
    assert (result.code, result.err) == (0, "")
    assert [row["text"] for row in result.rows] == expected
    assert [row["index"] for row in result.rows] == [0, 1, 2, 3]
    keys = {"index", "sequence", "prompt", "alpha", "text", "token_ids", "finish_reason"}
    assert all(set(row) == keys for row in result.rows)


def test_text_in_order(run: Run, roles: list[str], expected: list[str], tmp_path: Path) -> None:
    """The text format is the texts in the order of the prompts, on standard output and in a file alike."""
    arguments = ["generate", *roles, "--max-new-tokens", 8, "--batch-size", 1, "--format", "text"]
    stdin = "\n".join(PROMPTS) + "\n"
    wanted = "".join(f"{text}\n" for text in expected)
    assert run(*arguments, stdin=stdin).out == wanted
    assert run(*arguments, "--output", tmp_path / "a.txt", stdin=stdin).out == ""
    assert (tmp_path / "a.txt").read_bytes() == wanted.encode()


def test_file_is_sorted(run: Run, roles: list[str], expected: list[str], tmp_path: Path) -> None:
    """A finished output file is in the order of the prompts and equals standard output byte by byte."""
    arguments = ["generate", *roles, "--max-new-tokens", 8, "--batch-size", 1, "--input-format", "txt"]
    stdin = "\r\n".join(PROMPTS)
    out = run(*arguments, stdin=stdin).out
    result = run(*arguments, "--output", tmp_path / "a.jsonl", stdin=stdin)
    assert (result.code, result.out) == (0, "")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.run.json"]


def test_gzipped_rows(run: Run, roles: list[str], expected: list[str], tmp_path: Path) -> None:
    """Gzipped JSONL is read; ids come back as they were; other fields of a data set do no harm."""
    rows = [{"id": f"q{index}", "prompt": prompt, "category": 3} for index, prompt in enumerate(PROMPTS)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
    result = run("generate", *roles, "--prompts", tmp_path / "a.jsonl.gz", "--max-new-tokens", 8)
    assert [(row["id"], row["prompt"], row["text"]) for row in result.rows] == [
        (row["id"], row["prompt"], text) for row, text in zip(rows, expected, strict=True)
    ]


def test_messages_and_ids(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A prompt may be messages or token ids, and each is repeated in its row as it was given."""
    messages = [{"role": "user", "content": "Who"}]
    rows = [{"messages": messages}, {"prompt": messages}, {"prompt": [0, 5, 6]}, {"prompt": "Who"}]
    result = run("generate", *roles, "--prompts", write_rows(tmp_path / "a.jsonl", rows), "--max-new-tokens", 5)
    assert [row["prompt"] for row in result.rows] == [messages, messages, [0, 5, 6], "Who"]
    # In the raw format one message is its content.
    assert result.rows[0]["text"] == result.rows[1]["text"] == result.rows[3]["text"]


def test_alpha_per_row(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A row's own α holds for it alone, and every row tells which it was."""
    rows = [{"prompt": "Who", "alpha": 0}, {"prompt": "Who"}, {"prompt": "Who", "alpha": [2.5]}]
    prompts = write_rows(tmp_path / "a.jsonl", rows)
    found = run("generate", *roles, "--prompts", prompts, "--max-new-tokens", 12, "--alpha", 1.5).rows
    assert [row["alpha"] for row in found] == [0.0, 1.5, 2.5]
    for row in found:
        [alone] = run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 12, f"--alpha={row['alpha']}").rows
        assert alone["token_ids"] == row["token_ids"]
    assert len({row["text"] for row in found}) == 3


def test_seed_of_a_row(run: Run, roles: list[str], tmp_path: Path) -> None:
    """An unseeded draw differs from run to run, and its row tells the seed that makes it again."""
    arguments = ["generate", *roles, "--temperature", 1.5, "--max-new-tokens", 12]
    first, second = (run(*arguments, "--prompt", "Who").rows[0] for _ in range(2))
    assert first["text"] != second["text"]
    prompts = write_rows(tmp_path / "a.jsonl", [{"prompt": "Who", "seed": first["seed"]}, {"prompt": "A small"}])
    assert run(*arguments, "--prompts", prompts, "--seed", 3).rows[0]["text"] == first["text"]
    again = run(*arguments, "--prompt", "Who", "--seed", second["seed"]).rows[0]
    assert again["text"] == second["text"]


def test_several_sequences(run: Run, roles: list[str]) -> None:
    """Several answers per prompt come one after another, each with the seed of its own."""
    arguments = ["--temperature", 1, "--seed", 5, "--num-return-sequences", 2, "--max-new-tokens", 4]
    rows = run("generate", *roles, "--prompt", "Who", "--prompt", "A small", *arguments, "--batch-size", 3).rows
    assert [(row["index"], row["sequence"], row["seed"]) for row in rows] == [
        (0, 0, 5),
        (0, 1, 6),
        (1, 0, 5),
        (1, 1, 6),
    ]


def test_beams(run: Run, roles: list[str]) -> None:
    """Beam search returns its several answers in one order of rows."""
    arguments = ["--num-beams", 3, "--num-return-sequences", 2, "--max-new-tokens", 4, "--batch-size", 1]
    rows = run("generate", *roles, "--prompt", "Who", "--prompt", "A small", *arguments).rows
    assert [(row["index"], row["sequence"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_logprobs_and_timing(run: Run, roles: list[str]) -> None:
    """Log-probabilities come one per token with the likeliest beside them; seconds only when asked for."""
    [row] = run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 3, "--logprobs", 2, "--timing").rows
    assert [entry["token_id"] for entry in row["logprobs"]] == row["token_ids"]
    for entry in row["logprobs"]:
        assert entry["top"][str(entry["token_id"])] == max(entry["top"].values()) == entry["logprob"]
        assert len(entry["top"]) == 2
    assert row["timing"]["num_new_tokens"] == 3


def test_stop_and_length(run: Run, roles: list[str], expected: list[str]) -> None:
    """A stop text ends the answer before it, and the row says so."""
    mark = expected[0][1:3]
    [row] = run("generate", *roles, "--prompt", PROMPTS[0], "--max-new-tokens", 8, "--stop", mark, "--stop", "@@").rows
    assert (row["text"], row["finish_reason"]) == (expected[0][: expected[0].index(mark)], "stop")


def test_progress_bar(run: Run, roles: list[str]) -> None:
    """A progress bar is drawn on stderr when asked for, and not otherwise where nobody looks."""
    arguments = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", 2]
    assert "1/1" in run(*arguments, "--progress").err
    assert run(*arguments).err == ""


def test_non_latin_text(run: Run, roles: list[str], tmp_path: Path) -> None:
    """Text of any script, with any line end in it, is one row in UTF-8 and reads back as it was."""
    prompt = "ཐིམ་ཕུ\u2028\u0085 — naïve\nline"
    prompts = write_rows(tmp_path / "a.jsonl", [{"prompt": prompt}])
    output = tmp_path / "b.jsonl"
    assert run("generate", *roles, "--prompts", prompts, "--max-new-tokens", 2, "--output", output).code == 0
    [line] = output.read_bytes().removesuffix(b"\n").split(b"\n")
    assert json.loads(line)["prompt"] == prompt


def test_formats_per_role(run: Run, roles: list[str]) -> None:
    """Each role reads its own format: the expert's alone changes the answer, and a text with {prompt} is one."""
    arguments = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", 12, "--format", "text"]
    plain, named, own = (
        run(*arguments, *more).out for more in ([], ["--expert-prompt", "alpaca"], ["--expert-prompt", "<{prompt}>"])
    )
    assert len({plain, named, own}) == 3
    assert (
        run(*arguments, *(part for role in ("base", "expert", "anti") for part in (f"--{role}-prompt", "{prompt}"))).out
        == plain
    )


def test_settings_per_role(run: Run, roles: list[str]) -> None:
    """A role's own dtype overrides the one for all."""
    arguments = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", 2]
    assert run(*arguments, "--dtype", "bfloat16", "--base-dtype", "float32", "--device-map", "cpu").code == 0
    # The engine says which dtype it was given: one that exists for all roles, and one that does not for the anti.
    assert "'no'" in run(*arguments, "--dtype", "float32", "--anti-dtype", "no").err
