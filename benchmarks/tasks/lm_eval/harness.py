"""The harness's own command line with one model more: `python -m benchmarks.tasks.lm_eval.harness run …`.

The new model is called `proxytune`.

From Python: `register()`, then `lm_eval.simple_evaluate(model="proxytune", model_args="base=…,expert=…,anti=…", …)`.
"""

from __future__ import annotations

from lm_eval.api.registry import register_model

from benchmarks.tasks.lm_eval.model import ProxyTuneLM

NAME = "proxytune"


def register() -> None:
    """Make the harness know `proxytune` by name; once in a process."""
    register_model(NAME)(ProxyTuneLM)


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
