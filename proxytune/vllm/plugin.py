"""The plugin that vLLM loads in each of its processes (entry point group `vllm.general_plugins`)."""

ARCHITECTURE = "ProxyTunedForCausalLM"
ENTRY_POINT_GROUP = "vllm.general_plugins"
ENTRY_POINT = "proxytune"


def register() -> None:
    """Tell vLLM of the composite, by name only, so that nothing is imported before it is used; may run repeatedly."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"proxytune.vllm.modeling:{ARCHITECTURE}")
