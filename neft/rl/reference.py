"""What a policy is kept near to: the model as it starts, or one that the user names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neft.errors import InputError
from neft.rl.loading import adapter_base, is_adapter
from neft.rl.options import PolicyConfig

_COPY = "ref"


@contextmanager
def chosen_reference(model: Any, config: PolicyConfig) -> Iterator[None]:
    """Makes a TRL trainer that is built in the block take `config.ref` as its reference.

    TRL has no argument for it in RLOO and GRPO: it loads the model that the configuration of the policy names as its
    source, which is the start of the run unless another name stands there. An adapter's reference is a frozen copy of
    it (`drop_copy`), or for a new one its base.

    Raises:
        InputError: an adapter is trained, and `ref` is another model than its base.
    """
    if config.ref is None:
        yield
        return
    if is_adapter(config.model) or config.lora_r is not None:
        base = adapter_base(config.model) if is_adapter(config.model) else config.model
        if _resolved(config.ref) != _resolved(base):
            raise InputError(f"ref is {config.ref}, but an adapter's own base is {base}; give that, or leave ref out.")
        yield
        return
    start, model.config._name_or_path = model.config._name_or_path, _resolved(config.ref)
    try:
        yield
    finally:
        model.config._name_or_path = start


def drop_copy(model: Any, config: PolicyConfig) -> None:
    """Removes TRL's frozen copy of a saved adapter if `ref` names its base: the reference is then the base alone."""
    if config.ref is not None and _COPY in getattr(model, "peft_config", {}):
        model.delete_adapter(_COPY)


def _resolved(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model
