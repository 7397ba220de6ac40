"""The plugin that vLLM loads in each of its processes (entry point group `vllm.general_plugins`)."""

ARCHITECTURE = "ProxyTunedForCausalLM"
MODEL_TYPE = "proxytune"
ENTRY_POINT_GROUP = "vllm.general_plugins"
ENTRY_POINT = "proxytune"


def register() -> None:
    """Tell vLLM of the composite, its model by name only, and of proxy folders; may run repeatedly."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from proxytune.vllm.folder import ProxyFolderConfig, ProxyFolderSettings

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"proxytune.vllm.modeling:{ARCHITECTURE}")
    _CONFIG_REGISTRY[MODEL_TYPE] = ProxyFolderConfig
    MODELS_CONFIG_MAP[ARCHITECTURE] = ProxyFolderSettings
