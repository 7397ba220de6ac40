"""Tokens that the roles of a composite share: one tokenizer's ids, their number, and those that end a text."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxytune.checkpoints import load_tokenizer, require_files
from proxytune.errors import OptionError, ProxyTuneWarning, RoleError
from proxytune.prompts import PromptFormat
from proxytune.roles import NONE, Role, Term, named_roles
from proxytune.vocabulary import shared_size


def load_tokenizers(
    base: Role, pairs: Sequence[tuple[Term, Term]], config: Any, tokenizer: Any
) -> tuple[Any, dict[str, Any]]:
    """Return a composite's tokenizer and, by name, those that are compared; no weights are read for them.

    Args:
        base: The role of the base.
        pairs: Expert and anti, likewise.
        config: The `ProxyTunedConfig`, for the roles' prompt formats.
        tokenizer: In place of the base's own: an object, a folder or a hub id.

    Returns:
        The base's tokenizer, or the given one; of a base behind an API the first that a small model brings. Then, by
        the role's name, the tokenizers that roles bring, and the given one as "tokenizer".

    Raises:
        RoleError: There is none, one cannot be loaded, or a role's files are not there.
        PromptFormatError: A role's format is `chat`, and its tokenizer has no chat template.
    """
    sources, forms = named_roles(base, pairs), {"base": config.base_prompt}
    for number, pair in enumerate(pairs):
        suffix = "" if len(pairs) == 1 else f"_{number + 1}"
        names = f"expert{suffix}", f"anti{suffix}"
        described = zip(names, pair, config.prompt_formats(number), strict=True)
        forms |= {name: form for name, term, form in described if term != NONE}
    for name, role in sources.items():
        require_files(role, name)
    given = as_tokenizer(tokenizer)
    tokenizers = {} if given is None else {"tokenizer": given}
    tokenizers |= {name: loaded for name, role in sources.items() if (loaded := load_tokenizer(role)) is not None}
    chosen = given if given is not None else tokenizers.get("base")
    if chosen is None and base.is_remote:
        chosen = next(iter(tokenizers.values()), None)
    if chosen is None:
        whose = "neither expert nor anti brings" if base.is_remote else "the base comes without"
        raise RoleError(
            f"{whose} a tokenizer: pass tokenizer= (--tokenizer) with a folder, a hub id or, from Python, an object."
        )
    for name, form in forms.items():
        PromptFormat(form).require_template(tokenizers.get(name, chosen))
    return chosen, tokenizers


def resolve_tokens(
    model: Any, chosen: Any, tokenizers: Mapping[str, Any], eos_token_ids: Sequence[int] | None
) -> tuple[int, ...]:
    """Write the shared ids into a composite's configs; return those that end a text.

    Args:
        model: The composite.
        chosen: Its tokenizer.
        tokenizers: As `load_tokenizers` returns them.
        eos_token_ids: In place of the roles' own.

    Raises:
        VocabularyError: The roles do not share token ids.
        OptionError: An id that ends a text is none of the shared ones.
    """
    widths = {role.name: role.logits_width for role in model.roles}
    size = model.config.vocab_size = shared_size(tokenizers, widths)
    if eos_token_ids is None:
        configured = model.generation_config.eos_token_id or []
        ids = [*configured, *(tokenizer.eos_token_id for tokenizer in tokenizers.values()), chosen.eos_token_id]
        eos_token_ids = [index for index in ids if index is not None and index < size]
        _warn_of_unshared_ends(model, tokenizers, chosen, size)
    unknown = next((index for index in eos_token_ids if not 0 <= index < size), None)
    if unknown is not None:
        raise OptionError(f"eos_token_ids has {unknown}, but the shared ids go from 0 to {size - 1}.")
    ends = tuple(dict.fromkeys(eos_token_ids))
    pad = model.generation_config.pad_token_id or 0
    model.generation_config.eos_token_id = list(ends) or None
    model.generation_config.pad_token_id = pad if 0 <= pad < size else 0
    return ends


def _warn_of_unshared_ends(model: Any, tokenizers: Mapping[str, Any], shared: Any, size: int) -> None:
    """Warn of ids that end a role's texts and that can never come, as they are beyond the shared ones."""
    unshared: dict[int, tuple[str | None, list[str]]] = {}
    for role in model.roles:
        tokenizer = tokenizers.get(role.name, shared)
        for index in {*_ids_of(role.model.generation_config), *_ids_of(role.config), *_ids_of(tokenizer)}:
            if index >= size:
                unshared.setdefault(index, (tokenizer.convert_ids_to_tokens(index), []))[1].append(role.name)
    for index, (token, names) in sorted(unshared.items()):
        warnings.warn(
            f"texts of the {' and '.join(names)} end with {f'{token!r} (id {index})' if token else f'id {index}'}, "
            f"which is beyond the {size} ids that all roles share, so it never ends an answer: pass stop=, or models "
            "that have that token in common.",
            ProxyTuneWarning,
            stacklevel=2,
        )


def _ids_of(source: Any) -> list[int]:
    """Return the ids that end a text by a config or a tokenizer."""
    ids = getattr(source, "eos_token_id", None)
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def as_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer from an object, a folder or a hub id; None from None."""
    return load_tokenizer(Role(str(tokenizer))) if isinstance(tokenizer, str | Path) else tokenizer
