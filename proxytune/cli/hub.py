"""The hub, asked once whether it is there: its client repeats every request to an unreachable one for half a minute."""

import os
from collections.abc import Mapping
from pathlib import Path

from proxytune.cli.stderr import note
from proxytune.errors import RoleNotFoundError
from proxytune.roles import looks_local

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 5.0


def require_available(sources: Mapping[str, str | None]) -> None:
    """Have the hub's client, which is not imported yet, look into its cache only where the hub does not answer.

    Args:
        sources: By role: hub ids, folders, "openai:" names; the hub is asked only where an id is among them.

    Raises:
        RoleNotFoundError: The hub does not answer, and an id is not in the cache either.
    """
    ids = {role: source for role, source in sources.items() if source and _is_hub_id(source)}
    if not ids:
        return
    reason = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else _unreachable_reason()
    if reason is None:
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub.constants import HF_HUB_CACHE

    for role, name in ids.items():
        if not any((Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").glob("snapshots/*/*.json")):
            raise RoleNotFoundError(
                f"{role} is {name!r}: no folder here, and not in the hub's cache, and the hub cannot be asked "
                f"({reason}): check the path, or the connection."
            )
    note(f"the hub cannot be asked ({reason}): models named by id are taken from its cache on this machine.")


def _unreachable_reason() -> str | None:
    import httpx

    try:
        httpx.head(os.environ.get("HF_ENDPOINT") or _ENDPOINT, timeout=_TIMEOUT_S)
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return None


def _is_hub_id(source: str) -> bool:
    return not (looks_local(source) or source.startswith("openai:") or Path(source).is_dir())
