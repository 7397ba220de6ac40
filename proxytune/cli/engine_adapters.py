"""Which adapter experts vLLM would load as models of their own, and whether an expert is loaded twice, as a draft."""

from collections.abc import Mapping
from typing import Any

from proxytune.cli.role_arguments import RoleChoice
from proxytune.errors import OptionError


def merged_adapters(choice: RoleChoice, options: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of experts that do not share their anti's weights under these engine options.

    Raises:
        RoleError: An adapter that does not belong to its anti.
    """
    from transformers import AutoConfig

    from proxytune.vllm.adapter import is_asked_to_merge, merge_reason

    found = set()
    for number, pair in enumerate(choice.pairs, 1):
        if not pair.expert.is_adapter:
            continue
        name = "expert" if len(choice.pairs) == 1 else f"expert_{number}"
        config = AutoConfig.from_pretrained(pair.anti.name_or_path, revision=pair.anti.revision)
        if is_asked_to_merge(options) or merge_reason(pair.expert, name, pair.anti, config, options) is not None:
            found.add(name)
    return frozenset(found)


def has_draft(options: Mapping[str, Any]) -> bool:
    """Return whether the engine loads the first expert once more, to draft for the composite.

    Raises:
        OptionError: Another model drafts, whose size is not known here.
    """
    draft = options.get("speculative_config")
    if draft is None:
        return False
    if not isinstance(draft, Mapping) or draft.get("model") is not None:
        raise OptionError(
            f"speculative_config is {draft!r}: doctor plans for the expert as the draft; leave its model out."
        )
    return True
