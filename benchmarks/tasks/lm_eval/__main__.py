"""The harness's command line with `proxytune` as a model: `python -m benchmarks.tasks.lm_eval run --model proxytune …`.

`--model_args base=…,expert=…,anti=…,alpha=…` are ProxyGenerator's arguments, or `model=` a proxy folder.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import register_model

from benchmarks.tasks.lm_eval.model import ProxyTuneLM
from proxytune import ProxyGenerator
from proxytune.errors import OptionError

_FIRST_GPU = (None, "cuda", "cuda:0")  # the command line always names one, and roles go there anyway


class NamedLM(ProxyTuneLM):
    """ProxyTuneLM made from the harness's model arguments."""

    def __init__(
        self,
        *,
        batch_size: Any = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: Any = None,
        model: str | None = None,
        **roles: Any,
    ) -> None:
        """`roles` are ProxyGenerator's arguments; `model` is a proxy folder; `max_batch_size` is the harness's."""
        if not str(batch_size).isdecimal():
            raise OptionError(f"batch_size is {batch_size!r}: write a whole number; it is halved when memory ends.")
        given = roles if device in _FIRST_GPU else {"device_map": device, **roles}
        generator = ProxyGenerator.from_pretrained(model, **given) if model else ProxyGenerator(**given)
        super().__init__(
            generator, batch_size=int(batch_size), max_length=max_length, max_gen_toks=max_gen_toks, seed=seed
        )


def register() -> None:
    """Make the harness know `proxytune` by name; once in a process."""
    register_model("proxytune")(NamedLM)


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
