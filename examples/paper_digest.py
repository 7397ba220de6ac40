"""Read a paper with a steered model: five questions about it, answered as they stream.

    python examples/paper_digest.py paper.pdf --base meta-llama/Llama-2-13b-hf \
        --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf --expert-prompt chat

Without roles it runs on the tiny trio that comes with proxytune, which shows that it works but knows no science.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxytune import ProxyGenerator, ProxyTuneError
from proxytune.demo import trio_path
from proxytune.errors import ContextLengthError, DependencyError, InputError

ROLES = ("base", "expert", "anti")
QUESTIONS = {
    "Summary": "What does this paper show? Answer in one sentence.",
    "Insights": "Which insights of this paper matter most, and why?",
    "Questions to the authors": "Which questions should a careful reader ask the authors?",
    "Future directions": "Which research could follow from this paper?",
    "Related references": "Which earlier works does this paper build on or relate to?",
}
_PROMPT = "{paper}\n\nQuestion about the paper above: {question}\nAnswer:"
_ANSWER_SHARE = 4  # at most a quarter of the context is kept for the answer


@dataclass(frozen=True)
class Excerpt:
    """As much of a paper's beginning as the models can read; `num_words` of the paper's `num_all_words`."""

    text: str
    num_words: int
    num_all_words: int

    @property
    def note(self) -> str | None:
        """What to tell the reader when something was left out."""
        if self.num_words == self.num_all_words:
            return None
        share = 100 * self.num_words / self.num_all_words
        return (
            f"the paper has {self.num_all_words} words and the context is shorter: the answers are about its first "
            f"{self.num_words} words ({share:.0f} %)."
        )


def read_paper(path: Path) -> str:
    """Return a paper's text, from a PDF or a text file.

    Raises:
        InputError: It cannot be read, or holds no text.
        DependencyError: It is a PDF, and pypdf is not installed.
    """
    try:
        text = _pdf_text(path) if path.suffix.lower() == ".pdf" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is neither a .pdf nor UTF-8 text: convert it first.") from error
    if not text.strip():
        raise InputError(f"{str(path)!r} holds no text: a scanned paper needs character recognition first.")
    return text


def cut_to_context(paper: str, generator: ProxyGenerator, max_new_tokens: int) -> Excerpt:
    """Return the longest beginning of a paper, in whole words, that leaves every question room for its answer.

    Raises:
        ContextLengthError: Not even a question without the paper does.
    """
    words = paper.split()
    # Line breaks stay as they are: only where the last word ends is looked for.
    ends, place = [0], 0
    for word in words:
        place = paper.index(word, place) + len(word)
        ends.append(place)

    def fits(num_words: int) -> bool:
        text = paper[: ends[num_words]]
        return all(generator.room(prompt_about(text, question)) >= max_new_tokens for question in QUESTIONS.values())

    if not fits(0):
        raise ContextLengthError(
            f"max_new_tokens is {max_new_tokens}, and the context has no room for a question beside that: lower it."
        )
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return Excerpt(paper[: ends[low]], low, len(words))


def prompt_about(paper: str, question: str) -> str:
    """Return the prompt for one question."""
    return _PROMPT.format(paper=paper, question=question)


def digest(excerpt: Excerpt, generator: ProxyGenerator, max_new_tokens: int) -> Iterator[str]:
    """Yield the digest piece by piece, as Markdown."""
    for heading, question in QUESTIONS.items():
        yield f"## {heading}\n\n"
        yield from generator.stream(prompt_about(excerpt.text, question), max_new_tokens=max_new_tokens)
        yield "\n\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run on the command line's arguments; 2 is a mistake of the user's."""
    args = _parser().parse_args(argv)
    try:
        paper = read_paper(args.paper)
        generator = _generator(args)
        context = generator.model.config.max_position_embeddings
        room = args.max_new_tokens if context is None else min(args.max_new_tokens, context // _ANSWER_SHARE)
        excerpt = cut_to_context(paper, generator, room)
        if excerpt.note:
            _tell(excerpt.note)
        for piece in digest(excerpt, generator, room):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except ProxyTuneError as error:
        _tell(str(error))
        return 2
    return 0


def _generator(args: argparse.Namespace) -> ProxyGenerator:
    roles = {role: getattr(args, role) for role in ROLES if getattr(args, role)}
    if not roles:
        _tell("no roles were named: this is the tiny trio that comes with proxytune, and it knows no science.")
        roles = {role: str(trio_path() / role) for role in ROLES}
    formats = {f"{role}_prompt": getattr(args, f"{role}_prompt") for role in ROLES}
    return ProxyGenerator(**roles, **formats, alpha=args.alpha, dtype=args.dtype, device_map=args.device_map)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", type=Path, help="a .pdf, or a text file in UTF-8")
    for role in ROLES:
        parser.add_argument(f"--{role}", metavar="MODEL", help=f"hub id or folder of the {role}")
        parser.add_argument(f"--{role}-prompt", metavar="FORMAT", default="raw", help=f"how the {role} reads prompts")
    parser.add_argument("--alpha", type=float, default=1.0, metavar="NUMBER", help="strength of steering (1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens per answer (256)")
    parser.add_argument("--dtype", help="of the weights, as in bfloat16")
    parser.add_argument("--device-map", help="as in transformers, as in auto")
    return parser


def _pdf_text(path: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DependencyError("reading a PDF needs pypdf: pip install pypdf.") from error
    try:
        return "\n".join(page.extract_text() for page in PdfReader(path).pages)
    except PyPdfError as error:
        raise InputError(f"{str(path)!r} cannot be read as a PDF: {error}.") from error


def _tell(text: str) -> None:
    sys.stderr.write(f"paper_digest: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
