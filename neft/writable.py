"""A check before the first step that the output can be written, so that no finished run is lost at its last line."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from neft.errors import InputError, OutputError
from neft.notices import notify

_SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAM_OPTIONS = ("early_stopping", "length_penalty")


def ensure_writable(model: Any, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Repairs the generation config, writes everything but the weights into a temporary folder, and checks the disk.

    Raises:
        InputError: transformers refuses to write one of the files.
        OutputError: the disk has too little space for the weights.
    """
    repair_generation_config(model)
    with tempfile.TemporaryDirectory(prefix="neft-") as folder:
        try:
            # An empty state: config, generation config, code and card are written as at the end.
            model.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the tuned model could not be written after training, so nothing was trained: {reason}"
            ) from error
    _check_disk(model, output)


def repair_generation_config(model: Any) -> None:
    """Unsets options without effect that transformers loads and refuses to write; says which.

    Vicuna and early copies of Llama 2 have `temperature` and `top_p` without `do_sample`.

    Raises:
        InputError: transformers still refuses the generation config.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
        return
    except ValueError:
        ineffective = [] if config.do_sample else list(_SAMPLING_OPTIONS)
        ineffective += _BEAM_OPTIONS if config.num_beams in (None, 1) else ()
        ineffective += ["pad_token_id"] if (config.pad_token_id or 0) < 0 else ()
    defaults = type(config)()
    unset: dict[str, Any] = {}
    for name in ineffective:
        value, default = getattr(config, name, None), getattr(defaults, name, None)
        if value != default:
            unset[name] = value
            setattr(config, name, default)
    try:
        config.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"transformers will not write the model's generation_config.json; mend that file first ({reason})."
        ) from error
    values = ", ".join(f"{name}={value}" for name, value in unset.items())
    notify(
        f"the model's generation_config.json sets {values}, which has no effect in generate, and which transformers "
        "will not write; left out of the output."
    )


def _check_disk(model: Any, output: Path) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    folder = next(parent for parent in output.resolve().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutputError(
            f"the weights take {num_bytes / 2**30:.1f} GiB and the disk of {folder} has {free / 2**30:.1f} GiB free; "
            "make space or choose another output."
        )
