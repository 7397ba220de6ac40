"""The errors a user can cause: one tree, each also the builtin it stands for."""


class ProxyTuneError(Exception):
    """Root of every error this package raises on purpose; its text is one sentence with the way out."""


class InputError(ProxyTuneError, ValueError):
    """A prompt, a file row or a path that cannot be used."""


class OptionError(ProxyTuneError, ValueError):
    """An option whose value is outside what it may be."""


class UnknownOptionError(ProxyTuneError, TypeError):
    """An option that does not exist."""


class RoleError(ProxyTuneError, ValueError):
    """A base, expert or anti that is missing or does not fit the others."""


class RoleNotFoundError(RoleError, FileNotFoundError):
    """A role whose folder or weights are not there."""


class VocabularyError(ProxyTuneError, ValueError):
    """Roles that do not share token ids."""


class PromptFormatError(ProxyTuneError, ValueError):
    """A prompt format that is unknown, or that cannot render the prompt."""


class ContextLengthError(ProxyTuneError, ValueError):
    """A prompt longer than a role can read."""


class RuntimeUnsupportedError(ProxyTuneError, ValueError):
    """Something this runtime cannot do; the text names one that can."""


class NonFiniteLogitsError(ProxyTuneError, FloatingPointError):
    """Logits of a role that are NaN or infinite, so that no token follows from them.

    Attributes:
        role: Name of the role.
        row: Number of the prompt in the call, or of the row in a tensor `[B, T]`.
        position: Position in the role's own sequence, counted from 0, padding left out.
    """

    def __init__(self, role: str, row: int, position: int) -> None:
        super().__init__(
            f"the logits of the {role} are NaN or infinite in row {row} at position {position}: its weights are "
            "damaged or overflow in their dtype; load it in float32 or bfloat16 (dtype), or get its files again."
        )
        self.role = role
        self.row = row
        self.position = position


class RemoteError(ProxyTuneError, RuntimeError):
    """A request to a base behind an API that failed for good; `status` is that of the last answer, if there was one."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class RemoteBudgetError(RemoteError):
    """A request that was not sent, because the budget for a base behind an API is spent."""


class OutputError(ProxyTuneError, OSError):
    """An output that cannot be written."""


class DependencyError(ProxyTuneError, ImportError):
    """An optional package that is needed and missing."""


class ProxyTuneWarning(UserWarning):
    """Something went on differently from what was asked, without loss."""
