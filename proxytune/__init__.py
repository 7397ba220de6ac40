"""Tune large language models at decode time: `logits = base + α · (expert − anti)`.

Importing this package makes transformers' Auto classes read proxy folders.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from proxytune.completion import Completion, Score, Timing, TokenLogprob
from proxytune.errors import ProxyTuneError
from proxytune.generator import ProxyGenerator
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.options import GenerationOptions
from proxytune.remote.settings import RemoteSettings
from proxytune.roles import Pair, Role
from proxytune.steering import steer
from proxytune.trace import Trace

AutoConfig.register("proxytune", ProxyTunedConfig, exist_ok=True)
AutoModelForCausalLM.register(ProxyTunedConfig, ProxyTunedForCausalLM, exist_ok=True)

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
    "steer",
]
