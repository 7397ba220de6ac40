"""What `proxytune doctor` says of a base behind an API: whether it answers, and what its server can do."""

from typing import TYPE_CHECKING, Any

from proxytune.errors import ProxyTuneError

if TYPE_CHECKING:
    from proxytune.cli.role_arguments import RoleChoice


def about_server(choice: "RoleChoice") -> dict[str, Any]:
    """Return what a few tiny requests show; `problem` says why the base cannot be used, None if it can.

    Fields: model, base_url, vocab_size, num_logprobs (per place; None is the whole vocabulary), verification (how
    drafts are checked), max_context and problem.
    """
    from proxytune.hf.loading import connect_base

    settings = choice.base.source
    found: dict[str, Any] = {"model": settings.model, "base_url": settings.base_url, "problem": None}
    try:
        base = connect_base(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs], choice.tokenizer)
    except ProxyTuneError as error:
        return found | {"problem": str(error)}
    remote = base.remote
    try:
        return found | {
            "vocab_size": base.config.vocab_size,
            "num_logprobs": remote.num_logprobs,
            "verification": remote.verification,
            "max_context": remote.max_context,
        }
    finally:
        remote.close()
