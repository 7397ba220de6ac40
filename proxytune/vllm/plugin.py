"""The plugin that vLLM loads in each of its processes (entry point group `vllm.general_plugins`)."""

from proxytune.vllm.plan import ARCHITECTURE

_MODEL_TYPE = "proxytune"


def register() -> None:
    """Tell vLLM of the composite, its model by name only, and of proxy folders; may run repeatedly."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from proxytune.vllm.folder import ProxyFolderConfig, ProxyFolderSettings

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"proxytune.vllm.modeling:{ARCHITECTURE}")
    _CONFIG_REGISTRY[_MODEL_TYPE] = ProxyFolderConfig
    MODELS_CONFIG_MAP[ARCHITECTURE] = ProxyFolderSettings
