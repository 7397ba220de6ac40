"""NEFTune (arXiv 2310.05914): fine-tuning with noise on the input embeddings, per document and only in training.

Importing this package is light: torch and transformers are imported when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from neft.config import TrainingConfig
from neft.errors import DataError, DivergenceError, InputError, NeftError, NoiseError, OutputError

if TYPE_CHECKING:
    from neft.callback import NeftCallback
    from neft.interrupting import TrainingInterrupted
    from neft.merging import merge
    from neft.noising import NoiseHandle, noise, noise_like, noise_to_signal
    from neft.recording import TrainingResult
    from neft.training import train

    __version__: str

__all__ = [
    "DataError",
    "DivergenceError",
    "InputError",
    "NeftCallback",
    "NeftError",
    "NoiseError",
    "NoiseHandle",
    "OutputError",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "merge",
    "noise",
    "noise_like",
    "noise_to_signal",
    "train",
]

_HOMES = {
    "NeftCallback": "neft.callback",
    "merge": "neft.merging",
    "NoiseHandle": "neft.noising",
    "noise": "neft.noising",
    "noise_like": "neft.noising",
    "noise_to_signal": "neft.noising",
    "TrainingInterrupted": "neft.interrupting",
    "TrainingResult": "neft.recording",
    "train": "neft.training",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its module on first use.

    Raises:
        AttributeError: the package has no such name.
    """
    if name == "__version__":
        try:
            return metadata.version("proxytune")  # the distribution of both packages
        except metadata.PackageNotFoundError:
            return "0+unknown"  # a source tree that is not installed
    if name not in _HOMES:
        raise AttributeError(f"module 'neft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
