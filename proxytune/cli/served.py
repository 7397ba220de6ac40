"""The roles that a server is to run, checked against each other before vLLM loads any of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxytune.cli.role_arguments import RoleChoice
from proxytune.errors import RoleError, RuntimeUnsupportedError

if TYPE_CHECKING:
    from proxytune.vllm.composite import VllmComposite


@dataclass(frozen=True, kw_only=True)
class Served:
    """A composite and what its server says of text.

    Attributes:
        composite: As the vllm runtime knows it.
        tokenizer: Folder or hub id.
        tokenizer_revision: Of that.
        prompt_format: The one of all roles.
        eos_token_ids: Of all roles together, or the proxy folder's.
    """

    composite: "VllmComposite"
    tokenizer: str
    tokenizer_revision: str | None
    prompt_format: str
    eos_token_ids: tuple[int, ...]


def served(choice: RoleChoice, engine_options: Mapping[str, Any]) -> Served:
    """Return what to serve.

    Raises:
        RuntimeUnsupportedError: vLLM cannot run these roles, or they read prompts in several formats.
        VocabularyError: They do not share token ids.
        RoleError: A role is missing, or none brings a tokenizer.
    """
    from proxytune.hf.loading import config_of
    from proxytune.runtimes import choose_runtime, new_vllm_composite

    roles = [(pair.expert, pair.anti) for pair in choice.pairs]
    prompt_format = _shared_format(choice)
    choose_runtime("vllm", engine_options, choice.base, roles)
    composite = new_vllm_composite(
        choice.base, roles, config_of(choice.base, choice.pairs, roles, choice.formats, choice.rule), engine_options
    )
    source, revision = (choice.tokenizer, None) if choice.tokenizer else (str(choice.base.source), choice.base.revision)
    eos_token_ids = _settle_vocabulary(choice, composite)
    return Served(
        composite=composite,
        tokenizer=source,
        tokenizer_revision=revision,
        prompt_format=prompt_format,
        eos_token_ids=eos_token_ids,
    )


def _shared_format(choice: RoleChoice) -> str:
    found = [choice.formats["base_prompt"]]
    for pair in choice.pairs:
        found += [
            pair.expert_prompt or choice.formats["expert_prompt"],
            pair.anti_prompt or choice.formats["anti_prompt"],
        ]
    if len(set(found)) > 1:
        raise RuntimeUnsupportedError(
            f"base, expert and anti read prompts in different formats ({', '.join(dict.fromkeys(found))}), and a "
            "request in vLLM has one prompt: give all roles one format, or take `proxytune generate --runtime hf`."
        )
    return found[0]


def _settle_vocabulary(choice: RoleChoice, composite: "VllmComposite") -> tuple[int, ...]:
    """Write the number of shared ids into the composite's config; return the ids that end a completion."""
    from proxytune.checkpoints import load_tokenizer
    from proxytune.roles import Role, named_roles
    from proxytune.vocabulary import shared_size

    named = named_roles(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs])
    own = {name: found for name, role in named.items() if (found := load_tokenizer(role)) is not None}
    shared = None if choice.tokenizer is None else load_tokenizer(Role(choice.tokenizer))
    tokenizer = own.get("base") if shared is None else shared
    if tokenizer is None:
        raise RoleError("the base comes without a tokenizer: pass --tokenizer with a folder or a hub id.")
    config = composite.config
    config.vocab_size = shared_size(
        {**({} if shared is None else {"tokenizer": shared}), **own},
        {role.name: role.logits_width for role in composite.roles},
    )
    ids = choice.eos_token_ids
    if ids is None:
        configured = composite.generation_config.eos_token_id or []
        ids = (*configured, *(found.eos_token_id for found in own.values()), tokenizer.eos_token_id)
    return tuple(dict.fromkeys(index for index in ids if index is not None and 0 <= index < config.vocab_size))
