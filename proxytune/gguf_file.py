"""Models and tokenizers of GGUF files, read by transformers: the weights are dequantised into ordinary tensors."""

from pathlib import Path
from typing import Any

from proxytune.errors import DependencyError

SUFFIX = ".gguf"
_ADDS_BOS = "tokenizer.ggml.add_bos_token"


def is_gguf(source: Any) -> bool:
    """Return whether a role's source is the path of a GGUF file."""
    return isinstance(source, str | Path) and str(source).lower().endswith(SUFFIX)


def require_gguf(path: str) -> None:
    """Raise DependencyError unless the package that reads GGUF files is there."""
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise DependencyError(f"{path!r} is a GGUF file, which needs the package gguf: pip install 'proxytune[gguf]'.")


def gguf_path(source: str, gguf_file: str, revision: str | None = None) -> str:
    """Return where a GGUF file is on this machine: in a folder, or in the cache of the hub."""
    path = Path(source) / gguf_file
    if path.is_file():
        return str(path)
    from transformers.utils import cached_file

    return str(cached_file(source, gguf_file, revision=revision))


def dequantizing() -> Any:
    """Return the setting with which transformers makes ordinary tensors of a GGUF file's weights as it reads them.

    Left packed they would need kernels of their own, which know neither adapters nor our pair in one weight read.
    """
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def prepend_bos(tokenizer: Any, path: str) -> Any:
    """Return the tokenizer of a GGUF file, beginning texts with its bos token where the file says so.

    transformers leaves that entry unread (Gemma 3's text degenerates without its `<bos>`).
    """
    bos = tokenizer.bos_token
    if bos is None or not _adds_bos(path) or tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        return tokenizer
    from tokenizers.processors import Sequence, TemplateProcessing

    template = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    backend = tokenizer.backend_tokenizer
    backend.post_processor = (
        template if backend.post_processor is None else Sequence([backend.post_processor, template])
    )
    return tokenizer


def make_saveable(model: Any, dtype: Any) -> Any:
    """Return a model of a GGUF file as an ordinary one of `dtype`, which `save_pretrained` writes.

    The weights are dequantised already; what is taken off is the mark that they once were quantised.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.to(dtype)


def _adds_bos(path: str) -> bool:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field(_ADDS_BOS)
    return field is not None and bool(field.contents())
