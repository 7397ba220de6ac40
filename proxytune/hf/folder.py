"""Proxy folders on disk and hub: their location, the paths they name, code for Auto classes, card, push."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxytune.errors import OutputError, RoleError, RoleNotFoundError
from proxytune.folder_checks import read_json, require_sound_files
from proxytune.hub import hub_arguments, looks_local, require_available

_CODE_FILE = "modeling_proxytune.py"
# transformers reads the imports of this file, and says to install proxytune where it is missing.
_CODE = '''"""This folder loads with the installed proxytune; nothing else of it is code."""

from proxytune import ProxyTunedConfig, ProxyTunedForCausalLM

__all__ = ["ProxyTunedConfig", "ProxyTunedForCausalLM"]
'''
AUTO_MAP = {
    "AutoConfig": f"{_CODE_FILE.removesuffix('.py')}.ProxyTunedConfig",
    "AutoModelForCausalLM": f"{_CODE_FILE.removesuffix('.py')}.ProxyTunedForCausalLM",
}
_MODEL_TYPE = "proxytune"
_WAY_OUT = "make one with `proxytune save` or save_pretrained"


def local_folder(source: Any, revision: str | None = None) -> Path:
    """Return the folder itself, or that of a hub id in the hub's cache, downloaded if need be.

    Raises:
        RoleNotFoundError: It is not there, neither here nor on the hub.
        RoleError: It is a folder, but no proxy folder.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        path = _downloaded(str(source), revision)
    if not (path / "config.json").is_file():
        raise RoleNotFoundError(f"{str(source)!r} is no proxy folder (no config.json): {_WAY_OUT}.")
    require_sound_files(path, "the proxy folder")
    kind = read_json(path / "config.json", "the proxy folder").get("model_type")
    if kind != _MODEL_TYPE:
        raise RoleError(f"{str(source)!r} is no proxy folder (its model_type is {kind!r}): {_WAY_OUT}.")
    return path


def relative_source(source: str, folder: Path) -> str:
    """Return how a proxy folder names a role: hub ids as they are, folders in it or beside it relative to it.

    Folders further away stay absolute, so that the proxy folder can be moved alone.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return source
    path, folder = path.resolve(), folder.resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(folder.parent) else str(path)


def write_code(folder: Path) -> None:
    """Write the file that `AUTO_MAP` names."""
    (folder / _CODE_FILE).write_text(_CODE, encoding="utf-8")


def write_card(folder: Path, config: Any) -> None:
    """Write README.md: which models, α, rule, formats, licences, and how to load it; one that is there stays."""
    path = folder / "README.md"
    if path.exists():
        return
    from huggingface_hub import ModelCardData

    roles = list(_named_roles(config))
    licences = {name: _licence(entry["source"], folder) for name, entry in roles}
    known = {licence for licence in licences.values() if licence}
    data = ModelCardData(
        base_model=sorted({entry["source"] for _, entry in roles if not _is_local(entry["source"], folder)}) or None,
        library_name="transformers",
        license=known.pop() if len(known) == 1 and all(licences.values()) else None,
        pipeline_tag="text-generation",
        tags=["proxy-tuning", "decoding-time-steering"],
    )
    rows = "\n".join(
        f"| {name} | `{entry['source']}` | {entry.get('revision') or 'main'} | {licences[name] or 'see its page'} |"
        for name, entry in roles
    )
    alphas = ", ".join(f"{alpha:g}" for alpha in config.alphas)
    formats = ", ".join(f"{role} `{getattr(config, f'{role}_prompt')}`" for role in ("base", "expert", "anti"))
    path.write_text(
        f"""---
{data.to_yaml()}
---

# A base steered at decode time

This folder holds no weights. It names models whose logits are combined at every token,
`base + α · (expert − anti)` ([proxy tuning](https://arxiv.org/abs/2401.08565)): α = {alphas}, rule `{config.rule}`,
prompt formats {formats}.

| role | model | revision | licence |
| --- | --- | --- | --- |
{rows}

The licences of all these models hold for what is made with them.

```python
from transformers import AutoModelForCausalLM  # with proxytune installed

model = AutoModelForCausalLM.from_pretrained("this-folder-or-its-hub-id", trust_remote_code=True)
```

`proxytune chat --model this-folder-or-its-hub-id` talks to it.
""",
        encoding="utf-8",
    )


def write_alphas(folder: Path, alphas: Sequence[float]) -> None:
    """Put other strengths, one per pair, into a proxy folder's config.json (whole or not at all) and into its card.

    Raises:
        OutputError: The folder cannot be written.
    """
    listed = ", ".join(f"{alpha:g}" for alpha in alphas)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for pair, alpha in zip(config["pairs"], alphas, strict=True):
        pair["alpha"] = alpha
    texts = {"config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    card = folder / "README.md"
    if card.is_file():
        texts[card.name] = re.sub(r"α = .*?, rule", f"α = {listed}, rule", card.read_text(encoding="utf-8"))
    try:
        for name, text in texts.items():
            scratch = folder / f".{name}.{os.getpid()}.tmp"
            try:
                scratch.write_text(text, encoding="utf-8")
                scratch.replace(folder / name)
            finally:
                scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write alpha {listed} into {str(folder)!r}: {error.strerror or error}.") from error


def push(repo_id: str, save: Callable[[Path], None], config: Any, **options: Any) -> str:
    """Upload what `save` writes into a folder; return the commit's URL.

    Args:
        repo_id: "user/name".
        save: Writes the proxy folder.
        config: Its config.
        **options: `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`.

    Raises:
        RoleError: A role is a folder of this machine, which nobody else has.
        OutputError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for name, entry in _named_roles(config):
        if looks_local(entry["source"]) or Path(entry["source"]).exists():
            raise RoleError(
                f"{name} is {entry['source']!r}, a folder of this machine: push that model to the hub, and name it by "
                "its id."
            )
    api = HfApi(token=options.pop("token", None))
    try:
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            save(Path(scratch))
            return str(api.upload_folder(repo_id=repo_id, folder_path=scratch, **options))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(
            f"the hub does not take {repo_id!r} ({reason}): check the name, and `hf auth login`."
        ) from error


def _downloaded(source: str, revision: str | None) -> Path:
    """Return the snapshot of a hub id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if looks_local(source):
        raise RoleNotFoundError(f"{source!r} is no proxy folder (there is no such folder): {_WAY_OUT}.")
    require_available("the proxy folder", source)
    try:
        return Path(snapshot_download(source, revision=revision, **hub_arguments(source)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RoleNotFoundError(
            f"{source!r} is no proxy folder here, nor on the hub ({reason}): check the name; {_WAY_OUT}."
        ) from error


def _named_roles(config: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "base", config.base
    for number, pair in enumerate(config.pairs, 1):
        suffix = "" if len(config.pairs) == 1 else f" {number}"
        for name in ("expert", "anti"):
            if isinstance(pair[name], dict):
                yield f"{name}{suffix}", pair[name]


def _is_local(source: str, folder: Path) -> bool:
    return source.startswith("openai:") or looks_local(source) or (folder / source).exists()


def _licence(source: str, folder: Path) -> str | None:
    """Return what the model's own card says, as far as it is on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    card = folder / source / "README.md"
    if not _is_local(source, folder):
        cached = try_to_load_from_cache(source, "README.md")
        card = Path(cached) if isinstance(cached, str) else card
    try:
        licence = ModelCard.load(card, ignore_metadata_errors=True).data.get("license") if card.is_file() else None
    except (OSError, ValueError):
        return None
    return str(licence) if licence else None
