"""A base behind an API in a proxy folder: all its settings but the key, and the consent to send one."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from proxytune.errors import ProxyTuneError, RoleError, UnknownOptionError
from proxytune.library_errors import reason_of
from proxytune.remote.settings import RemoteSettings, remote_model_name


def stored_settings(settings: RemoteSettings) -> dict[str, Any]:
    """Return the settings that are not at their defaults; of the key, the name of its variable at most."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default and name != "model"}


def resolve_server(base: dict[str, Any], base_url: str | None) -> None:
    """Write into a folder's entry for its base which server is asked, and whether a key goes there.

    A folder may come from anywhere, and its URL lead anywhere: a key goes only where the caller says.

    Raises:
        RoleError: The entry is none of a base behind an API.
        UnknownOptionError: `base_url` for a base that is loaded here.
    """
    if "remote" not in base:
        if base_url is not None:
            raise UnknownOptionError(
                f"base_url is for a base behind an API, and the folder's is {base['source']!r}: leave it out."
            )
        return
    stored = base["remote"]
    if not isinstance(stored, dict):
        raise RoleError(f"the folder's settings of {base['source']!r} are {stored!r}: write it with save_pretrained.")
    if base_url is None:
        stored["api_key_env"] = None
    else:
        stored["base_url"] = base_url
        if stored.get("api_key_env") is None:
            stored.pop("api_key_env", None)
    remote_settings(base)


def remote_settings(entry: Mapping[str, Any]) -> RemoteSettings:
    """Return the settings that a folder's entry for its base holds.

    Raises:
        RoleError: It is no such entry; the text says what is wrong.
    """
    model = remote_model_name(entry["source"])
    if model is None:
        raise RoleError(f"the folder's base is {entry['source']!r} with a server: write it with save_pretrained.")
    try:
        return RemoteSettings(model=model, **entry["remote"])
    except (ProxyTuneError, TypeError) as error:
        raise RoleError(
            f"the folder's settings of {entry['source']!r} cannot be used ({reason_of(error)}): write it with "
            "save_pretrained."
        ) from error
