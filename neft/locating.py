"""A model's name resolved: a folder, or a hub id for which the network is asked at most once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from neft.errors import InputError

_TIMEOUT_S = 5.0


def located(model: str) -> tuple[str, dict[str, Any]]:
    """Returns what `from_pretrained` takes for a model: its name and the options that keep it off the network.

    Raises:
        InputError: it is a path without a folder, or a hub id that is neither in the cache nor can be asked for.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path.resolve()), {"local_files_only": True}
    # A hub id has at most one slash; anything else is a path, and the hub is not asked for it.
    if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise InputError(f"there is no model folder {model}; check the path.")
    if _is_cached(model):
        return model, {"local_files_only": True}
    _require_hub(model)
    return model, {}


def _is_cached(model: str) -> bool:
    try:
        cached = [try_to_load_from_cache(model, name) for name in ("config.json", "adapter_config.json")]
    except HFValidationError as error:
        raise InputError(f"there is no model folder {model}, and it is no hub id either ({error}).") from error
    return any(isinstance(path, str) for path in cached)


def _require_hub(model: str) -> None:
    """Asks the hub once, with a short wait: left to itself, the library tries again and again for a minute.

    Raises:
        InputError: the hub cannot be reached or may not be asked.
    """
    if constants.is_offline_mode():
        raise InputError(
            f"there is no model folder {model}, it is not in the hub's cache, and HF_HUB_OFFLINE forbids to download "
            "it; check the path."
        )
    try:
        get_session().head(f"{constants.ENDPOINT}/api/models/{model}", timeout=_TIMEOUT_S)
    except Exception as error:
        # Of which library an error is depends on the hub client's version (requests, httpx).
        reason = str(error) or type(error).__name__
        raise InputError(
            f"there is no model folder {model}, it is not in the hub's cache, and {constants.ENDPOINT} cannot be "
            f"reached to download it ({reason}); check the path."
        ) from error
