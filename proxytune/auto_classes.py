"""Registration of proxy folders with transformers' Auto classes, without importing transformers for it."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.models.auto.configuration_auto"


def register_on_import() -> None:
    """Register the proxy folder's config as soon as transformers' Auto classes are imported, or now if they are.

    The config registers the model when the first one is made: this early transformers is half imported.
    """
    if _MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from proxytune.hf.configuration import ProxyTunedConfig

    AutoConfig.register(ProxyTunedConfig.model_type, ProxyTunedConfig, exist_ok=True)


class _Finder(MetaPathFinder):
    """Finds the one module it waits for by all other finders, and leaves."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads a module as its own loader does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()
