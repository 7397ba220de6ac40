"""The hub, asked once a minute whether it is there: its client repeats every request to an unreachable one."""

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxytune.errors import RoleNotFoundError

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 5.0
_KEPT_S = 60.0


def looks_local(source: str) -> bool:
    """Return whether a source is a folder: a hub id is "name" or "owner/name"."""
    return Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1


def is_hub_id(source: str) -> bool:
    """Return whether a source is neither a folder nor a model behind an API."""
    return not (looks_local(source) or source.startswith("openai:") or Path(source).is_dir())


def offline_reason() -> str | None:
    """Return why the hub cannot be asked; None if it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    return _unreachable_reason(os.environ.get("HF_ENDPOINT") or _ENDPOINT, int(time.monotonic() // _KEPT_S))


def hub_arguments(source: str) -> dict[str, Any]:
    """Return arguments for the hub's client: to look into its cache only, where the hub cannot be asked for an id."""
    return {"local_files_only": True} if is_hub_id(source) and offline_reason() is not None else {}


def require_available(name: str, source: str) -> str | None:
    """Return why the hub cannot be asked for a hub id that is in the hub's cache; None where nothing is wrong.

    Raises:
        RoleNotFoundError: The hub does not answer, and the id is not in the cache either.
    """
    reason = offline_reason() if is_hub_id(source) else None
    if reason is None:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    if not any((Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").glob("snapshots/*/*")):
        raise RoleNotFoundError(
            f"{name} is {source!r}: no folder here, and not in the hub's cache, and the hub cannot be asked "
            f"({reason}): check the path, or the connection."
        )
    return reason


@lru_cache(maxsize=4)
def _unreachable_reason(endpoint: str, minute: int) -> str | None:
    import httpx

    try:
        httpx.head(endpoint, timeout=_TIMEOUT_S)
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return None
