"""Tokens that the roles of a composite share: one tokenizer's ids, their number, and those that end a text."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxytune.checkpoints import load_tokenizer
from proxytune.errors import OptionError, ProxyTuneWarning, RoleError
from proxytune.roles import Role, Term, named_roles
from proxytune.vocabulary import shared_size


def resolve_tokenizers(
    model: Any,
    base: Role,
    pairs: Sequence[tuple[Term, Term]],
    tokenizer: Any,
    eos_token_ids: Sequence[int] | None,
) -> tuple[Any, tuple[int, ...], Mapping[str, Any]]:
    """Write the shared ids into a composite's configs; return its tokenizer, the ids that end a text, and each role's.

    Args:
        model: The composite.
        base: The role of the base.
        pairs: Expert and anti, likewise.
        tokenizer: In place of the base's own: an object, a folder or a hub id.
        eos_token_ids: In place of the roles' own.

    Returns:
        The base's tokenizer, or the given one; of a base behind an API the first that a small model brings. Then the
        ids that end a text, and by the role's name the tokenizers that roles bring.

    Raises:
        RoleError: There is no tokenizer.
        VocabularyError: The roles do not share token ids.
        OptionError: An id that ends a text is none of the shared ones.
    """
    tokenizers = {
        name: loaded for name, role in named_roles(base, pairs).items() if (loaded := load_tokenizer(role)) is not None
    }
    given = as_tokenizer(tokenizer)
    chosen = given if given is not None else tokenizers.get("base")
    if chosen is None and base.is_remote:
        chosen = next(iter(tokenizers.values()), None)
    if chosen is None:
        raise RoleError("the base comes without a tokenizer: pass tokenizer= with a folder, a hub id or an object.")
    widths = {role.name: role.logits_width for role in model.roles}
    size = model.config.vocab_size = shared_size(
        {**({} if given is None else {"tokenizer": given}), **tokenizers}, widths
    )
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
    return chosen, ends, tokenizers


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
