"""Provenance of a result: packages, commit, device, and which weights exactly."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("proxytune", "torch", "transformers", "tokenizers", "peft", "bitsandbytes", "vllm", "numpy")
_SAMPLE = 1 << 20
_NUM_SAMPLES = 16
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja")


def session() -> dict[str, Any]:
    """Return what this process runs with: versions, commit of this checkout, device and time (UTC)."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions_of(_PACKAGES),
        "git_sha": git_sha(),
        "device": _device(),
        "host": platform.node(),
    }


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {name: version for name in packages if (version := _version(name))}
    return versions | {"python": platform.python_version()}


def git_sha() -> str | None:
    """Return the commit of the checkout this package lies in, `+` behind it when files differ; None without git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    sha = _git(root, "rev-parse", "HEAD")
    return None if not sha else sha + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def model_identity(source: str, revision: str | None) -> dict[str, Any]:
    """Return what tells a model from others: a folder's digest, or a hub id and its commit where that is known."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return {"folder": folder.resolve().name, "sha256": folder_digest(folder)}
    return {"hub_id": source, "revision": revision, "commit": _commit(source, revision)}


def stored_dtype(source: str, revision: str | None) -> str:
    """Return the dtype a model's config states; "as stored" where it states none, as for adapters."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError):
        return "as stored"
    text = config.get("text_config") or config
    return str(text.get("dtype") or text.get("torch_dtype") or "as stored")


def folder_digest(folder: Path) -> str:
    """Return a digest of a model folder: small files whole, of large ones the size and samples all over them."""
    digest = hashlib.sha256()
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLE * _NUM_SAMPLES:
                digest.update(stream.read())
                continue
            for number in range(_NUM_SAMPLES):
                stream.seek(number * (size - _SAMPLE) // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _commit(source: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file, extract_commit_hash

    for name in ("config.json", "adapter_config.json"):
        try:
            path = cached_file(source, name, revision=revision)
        except (OSError, ValueError):
            continue
        if path:
            return str(extract_commit_hash(path, None) or "") or None
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
