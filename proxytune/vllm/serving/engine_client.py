"""vLLM's engine client under our server: what a mark in the tokens means is told, and no role reads one."""

from collections.abc import AsyncIterator
from typing import Any

from vllm.exceptions import GenerationError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from proxytune.errors import NonFiniteLogitsError
from proxytune.vllm.marks import Marks


class CheckedEngine:
    """The client, whose requests end with an error (status 500) where a role's logits are no numbers."""

    def __init__(self, engine: Any) -> None:
        """Wrap vLLM's client."""
        self._engine = engine
        self._marks = Marks.of(engine.vllm_config.model_config.hf_config)

    def __getattr__(self, name: str) -> Any:
        """Return what the client has."""
        return getattr(self._engine, name)

    def generate(self, prompt: Any, sampling_params: Any, *arguments: Any, **settings: Any) -> AsyncIterator[Any]:
        """Return the outputs of a request as they come.

        Raises:
            VLLMValidationError: The prompt holds an id beyond the vocabulary.
        """
        outputs: Any = self._engine.generate(prompt, sampling_params, *arguments, **settings)
        if self._marks is None:
            return outputs  # type: ignore[no-any-return]
        given = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if given and max(given) >= self._marks.first_id:
            raise VLLMValidationError(
                f"the prompt holds token id {max(given)}, but the ids go from 0 to {self._marks.first_id - 1}."
            )
        is_delta = sampling_params.output_kind is RequestOutputKind.DELTA
        return self._checked(outputs, self._marks, is_delta=is_delta)

    async def _checked(self, outputs: Any, marks: Marks, *, is_delta: bool) -> AsyncIterator[Any]:
        before: dict[int, int] = {}  # tokens of each answer that were given already
        async for output in outputs:
            for part in output.outputs:
                length = len(output.prompt_token_ids or ()) + before.get(part.index, 0)
                if is_delta:
                    before[part.index] = before.get(part.index, 0) + len(part.token_ids)
                try:
                    marks.require_none(part.token_ids, 0, [length])
                except NonFiniteLogitsError as error:
                    await outputs.aclose()  # which ends the request
                    raise GenerationError(str(error)) from error
            yield output
