"""The reference of a policy: the model as it starts, or one that the user names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig

from neft.errors import InputError
from neft.locating import located
from neft.models import from_pretrained
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
        InputError: `ref` is not there or has another vocabulary, or an adapter is trained and `ref` is not its base.
    """
    if config.ref is None:
        yield
        return
    _require_vocabulary(config.ref, model.config.vocab_size)
    ref = located(config.ref)[0]
    if is_adapter(config.model) or config.lora_r is not None:
        base = adapter_base(config.model) if is_adapter(config.model) else config.model
        if ref != located(base)[0]:
            raise InputError(f"ref is {config.ref}, but an adapter's own base is {base}; give that, or leave ref out.")
        yield
        return
    start, model.config._name_or_path = model.config._name_or_path, ref
    try:
        yield
    finally:
        model.config._name_or_path = start


def drop_copy(model: Any, config: PolicyConfig) -> None:
    """Removes TRL's frozen copy of a saved adapter if `ref` names its base: the reference is then the base alone."""
    if config.ref is not None and _COPY in getattr(model, "peft_config", {}):
        model.delete_adapter(_COPY)


def _require_vocabulary(ref: str, num_tokens: int) -> None:
    num_ref_tokens = from_pretrained(AutoConfig, ref, "model").vocab_size
    if num_ref_tokens != num_tokens:
        raise InputError(
            f"ref {ref} has {num_ref_tokens} tokens and the model {num_tokens}; give a model of the same vocabulary."
        )
