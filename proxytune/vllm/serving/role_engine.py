"""vLLM's engine client under a server whose chats read differently for base, expert and anti."""

from typing import Any

from proxytune.vllm import compat
from proxytune.vllm.role_prompts import RolePrompts, private


class RoleEngine:
    """The client, but for requests that carry a prompt per role: their sequence is the one that all of these fit."""

    def __init__(self, engine: Any) -> None:
        """Wrap vLLM's client."""
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        """Return what the client has."""
        return getattr(self._engine, name)

    def generate(self, prompt: Any, sampling_params: Any, *arguments: Any, **settings: Any) -> Any:
        """Return the outputs of a request as they come."""
        prompts = RolePrompts.of(sampling_params.extra_args)
        if prompts is not None:
            prompt = compat.tokens(prompts.sequence(), private(sampling_params))
        return self._engine.generate(prompt, sampling_params, *arguments, **settings)
