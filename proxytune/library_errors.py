"""Messages of libraries about damaged files, as the ends of our own sentences."""

from pickle import UnpicklingError

_MAX_LENGTH = 300
_PLAIN = (OSError, ValueError, RuntimeError, ImportError)  # whose text says by itself what is wrong


def reason_of(error: Exception) -> str:
    """Return an error's text in one line, short, and without advice to switch a safeguard off.

    >>> reason_of(TypeError("a  number"))
    'TypeError: a number'
    """
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, UnpicklingError) or "weights_only" in text or "Weights only" in text:
        return "its pickle file is damaged or holds more than tensors, which could run code; get it as *.safetensors"
    if "trust_remote_code" in text:
        return "it comes with code of its own, which runs only with trust_remote_code=True (--trust-remote-code)"
    if not isinstance(error, _PLAIN) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."
