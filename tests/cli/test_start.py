"""What a command imports before it knows that it will run, and how an unreachable hub is told."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = ("torch", "transformers", "peft")
_SHOW = f"import sys; print([name for name in {_HEAVY} if name in sys.modules], file=sys.stderr)"


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("package", ["proxytune", "neft"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nothing"]])
def test_commands_start_light(package: str, arguments: list[str]) -> None:
    """Help, version and a wrong command come without torch and transformers."""
    done = _python(f"from {package}.cli import main; main({arguments}); {_SHOW}")
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--alhpa", "1"],
        ["generate", "--prompts", "/no/such/file.jsonl"],
        ["generate", "--prompt", "x", "--temperature", "-1"],
        ["generate", "--prompt", "x", "--base", "/no/such/folder", "--expert", "a/b", "--anti", "a/b"],
        ["bench", "--help"],
        ["report", "/no/such/file.jsonl"],
    ],
)
def test_wrong_options_and_files_answer_light(arguments: list[str]) -> None:
    """Whatever is wrong on the command line is told before anything heavy is imported."""
    done = _python(f"from proxytune.cli import main; main({arguments}); {_SHOW}", HF_HUB_OFFLINE="1")
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "imports",
    [
        "from proxytune import ProxyTunedConfig; from transformers import AutoConfig",
        "from transformers import AutoConfig; from proxytune import ProxyGenerator",
    ],
)
def test_auto_classes_know_the_proxy_folder(imports: str) -> None:
    """Whoever takes a class from proxytune, before or after transformers, has Auto classes that read proxy folders."""
    code = (
        f"{imports}; from transformers import AutoModelForCausalLM as Auto; "
        "print(Auto._model_mapping[type(AutoConfig.for_model('proxytune'))].__name__)"
    )
    assert _python(code).stdout.strip() == "ProxyTunedForCausalLM"


_OPTIONAL = (
    "datasets",
    "pandas",
    "scipy",
    "sklearn",
    "torchvision",
    "matplotlib",
    "peft",
    "bitsandbytes",
    "trl",
    "vllm",
)
_SHOW_OPTIONAL = f"import sys; print([name for name in {_OPTIONAL} if name in sys.modules], file=sys.stderr)"
_PLAIN = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from proxytune.demo import trio_path
tokenizer = AutoTokenizer.from_pretrained(trio_path() / "base")
model = AutoModelForCausalLM.from_pretrained(trio_path() / "base")
model.generate(**tokenizer("x", return_tensors="pt"), max_new_tokens=2)
"""


@pytest.mark.slow
def test_generate_imports_what_transformers_does() -> None:
    """One prompt imports no optional library that a plain model's generate does not: they cost seconds."""
    arguments = ["generate", "--prompt", "x", "--max-new-tokens", "2"]
    ours = _python(f"from proxytune.cli import main; main({arguments}); {_SHOW_OPTIONAL}")
    plain = _python(_PLAIN + _SHOW_OPTIONAL)
    imported = [set(ast.literal_eval(done.stderr.splitlines()[-1])) for done in (ours, plain)]
    assert imported[0] <= imported[1]


def test_versions_agree() -> None:
    """The packages and the commands tell one version."""
    code = "import neft, neft.cli, proxytune, proxytune.cli; print(proxytune.__version__, neft.__version__)"
    first, *rest = _python(
        f"{code}; proxytune.cli.main(['--version']); neft.cli.main(['--version'])"
    ).stdout.splitlines()
    version = first.split()[0]
    assert first == f"{version} {version}"
    assert rest == [f"proxytune {version}", f"neft {version}"]


def test_unreachable_hub_is_told_at_once(tmp_path: Path) -> None:
    """An id that is not in the cache is refused when the hub does not answer, without its client's retries."""
    arguments = ["generate", "--prompt", "x", "--base", "no/such", "--expert", "a/b", "--anti", "a/b"]
    code = f"from proxytune.cli import main; main({arguments})"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": ""}
    told = _python(code, **environment).stderr
    assert "base is 'no/such': no folder here, and not in the hub's cache" in told
    assert "Retry" not in told
