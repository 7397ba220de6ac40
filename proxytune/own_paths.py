"""Paths by which a proxy folder names models outside itself, and the mark that its user wrote them on this machine.

A folder that came from elsewhere could name any folder of whoever loads it. So paths that lead further than to a folder
beside it are followed where the user asks for that, or where his own save wrote them: it leaves a digest of the paths,
the user and the machine's id, which a folder from elsewhere cannot have. The folder itself may be moved.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from proxytune.errors import RoleError
from proxytune.hub import looks_local

_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_IS_RANDOM = 1 << 40  # bit of a node id that `uuid` has drawn, as there is no network card


def path_mark(sources: Iterable[str]) -> str | None:
    """Return the digest of the absolute paths among sources; None where there is none, or the machine has no id."""
    paths = sorted(source for source in sources if Path(source).is_absolute())
    machine = _machine_id()
    if not paths or machine is None:
        return None
    user = getattr(os, "getuid", lambda: "")()
    return hashlib.sha256("\0".join([machine, str(user), *paths]).encode()).hexdigest()


def resolve_source(source: str, folder: Path, *, is_downloaded: bool, is_trusted: bool) -> str:
    """Return the source of a role with a path relative to its proxy folder made absolute.

    Args:
        source: Hub id or path.
        folder: The proxy folder.
        is_downloaded: It came from the hub, and so without folders beside it.
        is_trusted: The user asked that paths be followed, or wrote them.

    Raises:
        RoleError: It is a path that leads out of the folder, and nobody here asked that it be followed.
    """
    path = folder / source  # an absolute source stays as it is
    around = folder.resolve() if is_downloaded else folder.resolve().parent
    is_outside = looks_local(source) or path.exists()
    if is_outside and not is_trusted and not path.resolve().is_relative_to(around):
        raise RoleError(
            f"the proxy folder names {source!r}, a path on this machine outside it that you have not saved here: pass "
            "trust_paths=True (--trust-paths) to follow it, or save the folder anew."
        )
    return str(path.resolve()) if path.exists() else source


def _machine_id() -> str | None:
    for file in _ID_FILES:
        try:
            machine = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if machine:
            return machine
    node = uuid.getnode()
    return None if node & _IS_RANDOM else f"{node:x}"
