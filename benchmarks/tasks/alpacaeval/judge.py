"""A judge of pairs of outputs: which model on which server, asked in which of alpaca-eval's forms."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.files import make_folder, write_json
from benchmarks.tasks.alpacaeval.process import offline_environment
from proxytune.errors import DependencyError, OptionError

PACKAGE = "alpaca-eval"
# What the package's prompts are put together with: an output that holds one of them would change the question.
MARKS = ("<|im_start|>", "<|im_end|>", "{instruction}", "{output_1}", "{output_2}")
_SHORTEST_SECRET = 8


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of the package's ways to ask: its prompt, what the answer may be, and how it is read."""

    version: int
    prompt: str
    asked: dict[str, Any]
    read: dict[str, Any]


FORMS = {
    # As in the package's weighted_alpaca_eval_gpt4_turbo (AlpacaEval 2): the log-probabilities of m and M.
    "weighted": Form(
        version=2,
        prompt="alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
        asked={"max_tokens": 1, "temperature": 1, "logprobs": True, "top_logprobs": 5},
        read={
            "fn_completion_parser": "logprob_parser",
            "completion_parser_kwargs": {
                "numerator_token": "m",
                "denominator_tokens": ["m", "M"],
                "is_binarize": False,
            },
            "completion_key": "completions_all",
        },
    ),
    # As in its alpaca_eval_gpt4 (AlpacaEval 1): a ranking in words.
    "ranking": Form(
        version=1,
        prompt="alpaca_eval_gpt4/alpaca_eval.txt",
        asked={"max_tokens": 100, "temperature": 0},
        read={"fn_completion_parser": "ranking_parser"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge behind an OpenAI-compatible server.

    Attributes:
        url: Up to and including `/v1`.
        model: The name the server knows it by.
        form: A key of `FORMS`.
        key_env: The environment variable that holds the server's key; None for a server without.
        timeout_s: Seconds without a sign of life before a try counts as failed.
        max_attempts: Tries per row; after that its verdict is missing.
        max_concurrency: Requests at a time.
    """

    url: str
    model: str
    form: str = "weighted"
    key_env: str | None = None
    timeout_s: float = 60.0
    max_attempts: int = 4
    max_concurrency: int = 5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(f"the judge's address is {parts.geturl()!r}: write http://host:port/v1.")
        if parts.username or parts.password or parts.query:
            raise OptionError(
                "the judge's address holds a name, a key or a query: leave them out; keys come by --judge-key-env."
            )
        if self.form not in FORMS:
            raise OptionError(f"the judge's form is {self.form!r}: choose one of {', '.join(FORMS)}.")
        for name in ("max_attempts", "max_concurrency"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}: it must be a whole number of at least 1.")
        if not self.timeout_s > 0:
            raise OptionError(f"the judge's timeout is {self.timeout_s} s: it must be above 0.")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise OptionError(f"the environment has no {self.key_env}: put the judge's key there.")

    @property
    def key(self) -> str | None:
        """The server's key, read when it is needed and never stored."""
        return os.environ[self.key_env] if self.key_env else None

    def describe(self) -> dict[str, Any]:
        """Return what decides its verdicts."""
        return {"model": self.model, "url": self.url, "form": self.form, "alpaca_eval": package_version()}

    def write_configuration(self, folder: Path) -> Path:
        """Write what the package reads (JSON, which is YAML too) below `folder`, without the key; return its path."""
        home = make_folder(folder / "annotator")
        form, clients = FORMS[self.form], home / "clients.yaml"
        client = {"base_url": self.url, "timeout": self.timeout_s, "max_retries": self.max_attempts - 1}
        write_json(clients, {"default": [client]})
        asked = {
            "model_name": self.model,
            **form.asked,
            "requires_chatml": True,
            "client_config_path": str(clients.resolve()),
            "num_procs": 1,
            # The client's retries are the only ones.
            "n_retries": 1,
            "sleep_time": 0,
        }
        annotator = {
            "prompt_template": str(_package_folder() / "evaluators_configs" / form.prompt),
            "fn_completions": "openai_completions",
            "completions_kwargs": asked,
            **form.read,
            "batch_size": 1,
        }
        path = home / "configs.yaml"
        write_json(path, {f"{self.form} {self.model}": annotator})
        return path.resolve()

    def environment(self) -> dict[str, str]:
        """Return the environment of the process that asks: offline, with this judge's key and no other of OpenAI's."""
        return offline_environment() | {"OPENAI_API_KEY": self.key or "none"}

    def without_key(self, value: Any) -> Any:
        """Return a JSON value in which the key, should a server have repeated it, is blotted out."""
        if not self.key or len(self.key) < _SHORTEST_SECRET:
            return value
        return json.loads(json.dumps(value, ensure_ascii=False).replace(json.dumps(self.key)[1:-1], "[key]"))


def package_version() -> str:
    """Return alpaca-eval's version.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise DependencyError(
            "AlpacaEval's judging needs the package alpaca-eval: install proxytune[bench], or pip install "
            "'alpaca-eval==0.6.6' 'setuptools<81'."
        ) from error


def _package_folder() -> Path:
    # Found without importing it: the import changes logging and environment.
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or spec.origin is None:
        raise DependencyError("the package alpaca_eval cannot be found: install proxytune[bench].")
    return Path(spec.origin).parent
