"""Tune large language models at decode time: `logits = base + α · (expert − anti)`.

Importing this package is light: torch and transformers are imported when a name that needs them is first used.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from proxytune.errors import ProxyTuneError

if TYPE_CHECKING:
    from proxytune.completion import Completion, Score, Timing, TokenLogprob
    from proxytune.custom_generation import custom_generate_folder
    from proxytune.generator import ProxyGenerator
    from proxytune.hf.configuration import ProxyTunedConfig
    from proxytune.hf.modeling import ProxyTunedForCausalLM
    from proxytune.options import GenerationOptions
    from proxytune.remote.settings import RemoteSettings
    from proxytune.roles import Pair, Role
    from proxytune.rules.proxy import steer
    from proxytune.trace import Trace

    __version__: str

__all__ = [
    "Completion",
    "GenerationOptions",
    "Pair",
    "ProxyGenerator",
    "ProxyTuneError",
    "ProxyTunedConfig",
    "ProxyTunedForCausalLM",
    "RemoteSettings",
    "Role",
    "Score",
    "Timing",
    "TokenLogprob",
    "Trace",
    "custom_generate_folder",
    "steer",
]

_MODULES = {
    "Completion": "proxytune.completion",
    "GenerationOptions": "proxytune.options",
    "Pair": "proxytune.roles",
    "ProxyGenerator": "proxytune.generator",
    "ProxyTunedConfig": "proxytune.hf.configuration",
    "ProxyTunedForCausalLM": "proxytune.hf.modeling",
    "RemoteSettings": "proxytune.remote.settings",
    "Role": "proxytune.roles",
    "Score": "proxytune.completion",
    "Timing": "proxytune.completion",
    "TokenLogprob": "proxytune.completion",
    "Trace": "proxytune.trace",
    "custom_generate_folder": "proxytune.custom_generation",
    "steer": "proxytune.rules.proxy",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use.

    Raises:
        AttributeError: The package has no such name.
    """
    if name == "__version__":
        try:
            return metadata.version("proxytune")
        except metadata.PackageNotFoundError:
            return "0+unknown"  # a source tree that is not installed
    if name not in _MODULES:
        raise AttributeError(f"module 'proxytune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
