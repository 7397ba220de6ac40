"""The command line with a base behind an API, as processes of their own and within this one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxytune.cli import main
from tests.cli.console import Result, assert_refused, write_rows
from tests.remote import rig
from tests.remote.completions_server import CompletionsServer
from tests.remote.faulty_proxy import FaultyProxy

Run = Callable[..., Result]
SMALL = ["--expert", str(rig.SMALL["expert"]), "--anti", str(rig.SMALL["anti"])]


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    """A server that gives the whole vocabulary."""
    with rig.server() as found:
        yield found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run_command(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


def roles(url: str) -> list[str]:
    """Return the options that name the trio with its base at `url`."""
    return ["--base", "openai:base", "--base-url", url, *SMALL]


def local_texts(count: int, length: int) -> list[str]:
    """Return the local composite's texts."""
    return [row.text for row in rig.local().generate(rig.questions(count), max_new_tokens=length)]


def test_a_process_of_its_own_completes_prompts(server: CompletionsServer, tmp_path: Path) -> None:
    """`proxytune generate --base openai:…` writes the local texts, with the seen mass of each token."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in rig.questions(3)])
    command = [sys.executable, "-m", "proxytune", "generate", *roles(server.url), "--prompts", str(prompts)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--max-new-tokens", "12"], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == local_texts(3, 12)
    assert all(len(row["base_mass"]) == len(row["token_ids"]) and min(row["base_mass"]) > 0.999 for row in rows)
    assert "error" not in rows[0]


def test_a_budget_ends_a_run_and_resume_finishes_it(server: CompletionsServer, tmp_path: Path, run: Run) -> None:
    """Rows without budget are written as such, the exit code is 1, and --resume completes them and only them."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in rig.questions(6)])
    output = tmp_path / "out.jsonl"
    command = ["generate", *roles(server.url), "--prompts", prompts, "--output", output, "--max-new-tokens", 8]
    command += ["--batch-size", 2, "--speculation", "off"]
    spent_to_connect = rig.remote(server.url).model.base.remote.usage.num_requests
    short = run(*command, "--base-max-requests", spent_to_connect + 25)
    assert (short.code, short.out) == (1, "")
    assert "ended with an error" in short.err
    assert "--resume" in short.err
    first = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["index"] for row in first] == list(range(6))
    cut = {row["index"] for row in first if "error" in row}
    assert {row["finish_reason"] for row in first if "error" in row} == {"budget"}
    assert 0 < len(cut) < 6
    before = len(server.completions)
    whole = run(*command, "--resume")
    assert (whole.code, whole.err.count("ended with an error")) == (0, 0)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == local_texts(6, 8)
    assert not any("error" in row for row in rows)
    wanted = sum(len(rows[index]["token_ids"]) for index in cut)
    assert len(server.completions) - before == wanted + spent_to_connect


def test_ctrl_c_ends_a_stalled_run_at_once(server: CompletionsServer, tmp_path: Path, run: Run) -> None:
    """A process that waits for a server that stalls ends on SIGINT with whole rows, and --resume finishes them."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in rig.questions(4)])
    output = tmp_path / "out.jsonl"
    options = ["--prompts", str(prompts), "--output", str(output), "--max-new-tokens", "4", "--batch-size", "2"]
    options += ["--speculation", "off", "--ignore-eos", "--base-timeout", "500"]
    with FaultyProxy(server.url) as proxy:
        spent_to_connect = rig.remote(proxy.url).model.base.remote.usage.num_requests
        proxy.given.clear()
        proxy.script = [None] * (spent_to_connect + 8) + ["stall"] * 100
        process = subprocess.Popen(
            [sys.executable, "-m", "proxytune", "generate", *roles(proxy.url), *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while "stall" not in proxy.given and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; 2 of 4 rows" in err
    assert run("generate", *roles(server.url), *options, "--resume").code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [tuple(row["token_ids"]) for row in rows] == [ids[:4] for ids in rig.greedy()[:4]]


def test_failed_rows_go_to_standard_output_too(server: CompletionsServer, tmp_path: Path, run: Run) -> None:
    """Without a file, every row is written in order, those that failed with their error; the exit code is 1."""
    with FaultyProxy(server.url) as proxy:
        spent_to_connect = rig.remote(proxy.url).model.base.remote.usage.num_requests
        proxy.given.clear()
        proxy.script = [None] * (spent_to_connect + 3) + ["500"]
        arguments = ["--prompt", rig.questions(2)[0], "--prompt", rig.questions(2)[1], "--max-new-tokens", 4]
        found = run("generate", *roles(proxy.url), *arguments, "--base-max-retries", 0, "--speculation", "off")
    assert found.code == 1
    assert [row["index"] for row in found.rows] == [0, 1]
    [failed] = [row for row in found.rows if "error" in row]
    assert failed["finish_reason"] == "error"
    assert "500" in failed["error"]


def test_scores_and_traces_are_the_local_ones(server: CompletionsServer, tmp_path: Path, run: Run) -> None:
    """`score` and `trace` give the local numbers to 1e-3."""
    given = write_rows(tmp_path / "rows.jsonl", [{"prompt": rig.questions(1)[0], "continuation": " In the north."}])
    [here] = rig.local().score(rig.questions(1), [" In the north."])
    found = run("score", *roles(server.url), "--prompts", given)
    assert found.code == 0, found.err
    assert found.rows[0]["total"] == pytest.approx(here.total, abs=1e-3)
    found = run("trace", *roles(server.url), "--prompt", rig.questions(1)[0], "--max-new-tokens", 5)
    assert found.code == 0, found.err
    wanted = rig.local().trace(rig.questions(1)[0], max_new_tokens=5)
    assert found.rows[0]["text"] == wanted.text
    assert [token["kl_combined_base"] for token in found.rows[0]["tokens"]] == pytest.approx(
        [token.kl_combined_base for token in wanted.tokens], abs=1e-3
    )


def test_chat_talks_through_it(server: CompletionsServer) -> None:
    """A line of chat is answered."""
    process = subprocess.run(
        [sys.executable, "-m", "proxytune", "chat", *roles(server.url), "--max-new-tokens", "4", "--seed", "1"],
        input="Where was Jora born?\n/quit\n",
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()


def test_doctor_says_what_the_server_can_do(server: CompletionsServer, run: Run) -> None:
    """Reachable or not, how much is seen, how drafts are checked, the context, and whether the vocabulary is shared."""
    found = run("doctor", *roles(server.url), "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)["server"]
    assert told == {
        "model": "base",
        "base_url": server.url,
        "vocab_size": 1252,
        "num_logprobs": None,
        "verification": "prompts",
        "max_context": 256,
        "problem": None,
    }
    text = run("doctor", *roles(server.url)).out
    assert "full vocabulary" in text
    assert "checked by prompts" in text


def test_doctor_says_why_a_server_cannot_be_used(server: CompletionsServer, run: Run) -> None:
    """A model that the server does not have is a problem, and the exit code 2."""
    found = run("doctor", "--base", "openai:other", "--base-url", server.url, *SMALL, "--json")
    assert found.code == 2
    assert "'base'" in json.loads(found.out)["server"]["problem"]


def test_a_folder_is_saved_and_used(server: CompletionsServer, tmp_path: Path, run: Run) -> None:
    """`save` writes a proxy folder with the server in it, and `--model` generates with that."""
    folder = tmp_path / "folder"
    assert run("save", *roles(server.url), "--base-top-logprobs", 20, "--output", folder).code == 0
    stored = json.loads((folder / "config.json").read_text())["base"]
    assert stored == {"source": "openai:base", "remote": {"base_url": server.url, "top_logprobs": 20}}
    found = run("generate", "--model", folder, "--prompt", rig.questions(1)[0], "--max-new-tokens", 3)
    assert found.code == 0, found.err
    assert max(found.rows[0]["base_mass"]) < 1.0


def test_what_cannot_be_is_one_sentence(server: CompletionsServer, run: Run) -> None:
    """vLLM, serving, options of loading for the base, options of a server without one, a key without a URL."""
    prompt = ["--prompt", "a"]
    remote = roles(server.url)
    local = ["--base", str(rig.TRIO / "base"), *SMALL]
    assert_refused(run("generate", *remote, *prompt, "--runtime", "vllm"), "runtime='hf'")
    assert_refused(run("serve", *remote), "serve a base that vLLM loads")
    assert_refused(run("generate", *remote, *prompt, "--base-dtype", "float32"), "--base-dtype", "behind an API")
    assert_refused(run("generate", *local, *prompt, "--base-max-requests", 5), "--base-max-requests", "openai:MODEL")
    assert_refused(run("generate", "--base", "openai:base", *SMALL, *prompt), "base_url")
    assert_refused(run("generate", *remote, *prompt, "--num-beams", 2), "no beam search")
    assert_refused(run("generate", *remote, *prompt, "--base-timeout", 0), "timeout_s")
    unreachable = run("generate", *roles("http://127.0.0.1:9/v1"), *prompt, "--base-max-retries", 0)
    assert unreachable.code == 2
    assert "127.0.0.1:9" in unreachable.err
