"""Roles on another device than the base, simulated: their logits are tensors that refuse to meet others unmoved."""

from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.hf.decoding.runners import RoleRunner
from tests import tiny


class Far(torch.Tensor):
    """A tensor of another device: only `.to` brings it here."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function on far tensors alone."""
        kwargs = kwargs or {}
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_mixed = any(not isinstance(leaf, Far) and leaf.dim() > 0 for leaf in leaves)
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = torch.utils._pytree.tree_map(
                lambda leaf: leaf.as_subclass(torch.Tensor) if isinstance(leaf, Far) else leaf, (args, kwargs)
            )
            name = getattr(func, "__name__", "")
            if name == "to":
                return func(*args, **kwargs)
            if is_mixed:
                raise RuntimeError(f"Expected all tensors to be on the same device, in {name}")
            result = func(*args, **kwargs)
        return torch.utils._pytree.tree_map(
            lambda leaf: leaf.as_subclass(Far) if isinstance(leaf, torch.Tensor) else leaf, result
        )


def move_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the logits of all roles but the base be far from now on."""
    original = RoleRunner._logits

    def logits(runner: RoleRunner, *args: Any) -> torch.Tensor:
        found = original(runner, *args)
        return found if runner.name == "base" else found.as_subclass(Far)

    monkeypatch.setattr(RoleRunner, "_logits", logits)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 2}, {"logprobs": 2}])
@pytest.mark.parametrize(
    "settings", [{"speculation": "off"}, {"speculation": 3}, {"speculation": "auto"}, {"draft": 4}]
)
def test_a_pair_on_another_device(
    settings: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain, fixed and automatic drafts, and a draft model there too: the tokens of one device."""
    if "draft" in settings:
        settings = {"draft": tiny.model("gpt2", settings["draft"]), "speculation": 2}
    prompts = [tiny.prompt_ids(length, seed=length) for length in (7, 3)]
    options = {"max_new_tokens": 16, "ignore_eos": True, **options}
    expected = tiny.generator(speculation="off").generate(prompts, **options)
    move_pair(monkeypatch)
    found = tiny.generator(**settings).generate(prompts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]


def test_the_simulation_notices_what_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a far tensor meets one of here, the step fails."""
    move_pair(monkeypatch)
    monkeypatch.setattr(Far, "to", lambda tensor, *_: tensor)
    trio = tiny.trio()
    with pytest.raises(RuntimeError, match="same device"):
        ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer()).generate([[5, 6]], max_new_tokens=4)
