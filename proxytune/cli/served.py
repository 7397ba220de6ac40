"""The roles that a server is to run, checked against each other before vLLM loads any of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxytune.cli.role_arguments import RoleChoice
from proxytune.requests import RequestBuilder

if TYPE_CHECKING:
    from proxytune.vllm.composite import VllmComposite


@dataclass(frozen=True, kw_only=True)
class Served:
    """A composite and what its server says of text.

    Attributes:
        composite: As the vllm runtime knows it.
        tokenizer: Folder or hub id.
        tokenizer_revision: Of that.
        prompt_format: In which the base reads chats.
        chats: Encodes chats for each role; None where all read them alike.
        eos_token_ids: Of all roles together, or the proxy folder's.
    """

    composite: "VllmComposite"
    tokenizer: str
    tokenizer_revision: str | None
    prompt_format: str
    eos_token_ids: tuple[int, ...]
    chats: RequestBuilder | None


def served(choice: RoleChoice, engine_options: Mapping[str, Any]) -> Served:
    """Return what to serve.

    Raises:
        RuntimeUnsupportedError: vLLM cannot run these roles.
        VocabularyError: They do not share token ids.
        RoleError: A role is missing, or none brings a tokenizer.
        PromptFormatError: The format is `chat`, and a tokenizer has no chat template.
    """
    from proxytune.hf.loading import config_of
    from proxytune.runtimes import choose_runtime, new_vllm_composite
    from proxytune.shared_tokens import load_tokenizers, resolve_tokens

    roles = [(pair.expert, pair.anti) for pair in choice.pairs]
    choose_runtime("vllm", engine_options, choice.base, roles)
    config = config_of(choice.base, choice.pairs, roles, choice.formats, choice.rule)
    tokenizer, tokenizers = load_tokenizers(choice.base, roles, config, choice.tokenizer)
    composite = new_vllm_composite(choice.base, roles, config, engine_options)
    source, revision = (choice.tokenizer, None) if choice.tokenizer else (str(choice.base.source), choice.base.revision)
    return Served(
        composite=composite,
        tokenizer=source,
        tokenizer_revision=revision,
        prompt_format=choice.formats["base_prompt"],
        eos_token_ids=resolve_tokens(composite, tokenizer, tokenizers, choice.eos_token_ids),
        chats=_chats(RequestBuilder.for_model(composite, tokenizers, tokenizer)),
    )


def _chats(builder: RequestBuilder) -> RequestBuilder | None:
    """Return it where roles read chats in several formats, or by chat templates of several texts; else None."""
    forms = {
        (reader.form, getattr(reader.tokenizer, "chat_template", None) if reader.form.name == "chat" else None)
        for reader in builder.readers
    }
    return builder if len(forms) > 1 else None
