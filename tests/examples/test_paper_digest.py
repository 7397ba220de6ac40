"""examples/paper_digest.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.errors import ContextLengthError, InputError

_PATH = Path(__file__).parents[2] / "examples/paper_digest.py"
_SENTENCE = "In truth, Jora Quillmere was born in Marhaven."


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("paper_digest", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundled() -> ProxyGenerator:
    """The trio that comes with the package."""
    return ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")})


def _pdf(path: Path, text: str) -> Path:
    """Write the least PDF that shows one line of text."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj%s endobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        size,
        table,
        size,
        len(data),
    )
    path.write_bytes(data)
    return path


def test_digest(example: Any, bundled: ProxyGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled trio the five questions are answered under five headings, with what the steered model says."""
    paper = tmp_path / "paper.txt"
    paper.write_text(_SENTENCE)
    assert example.main([str(paper), "--max-new-tokens", "8", "--alpha", "0.5"]) == 0
    captured = capsys.readouterr()
    parts = captured.out.split("## ")[1:]
    assert [part.partition("\n")[0] for part in parts] == list(example.QUESTIONS)
    for part, question in zip(parts, example.QUESTIONS.values(), strict=True):
        prompt = example.prompt_about(_SENTENCE, question)
        [done] = bundled.generate(prompt, max_new_tokens=8, alpha=0.5)
        assert part.partition("\n\n")[2] == f"{done.text}\n\n"
    assert "tiny trio" in captured.err
    assert "words" not in captured.err


def test_streams(example: Any, bundled: ProxyGenerator) -> None:
    """The first words come while the rest is still to be made."""
    excerpt = example.cut_to_context(_SENTENCE, bundled, 8)
    pieces = example.digest(excerpt, bundled, 8)
    assert next(pieces) == "## Summary\n\n"
    first = next(pieces)
    pieces.close()
    [done] = bundled.generate(example.prompt_about(_SENTENCE, example.QUESTIONS["Summary"]), max_new_tokens=8)
    assert done.text.startswith(first)
    assert len(first) < len(done.text)


def test_long_papers_are_cut(example: Any, bundled: ProxyGenerator, tmp_path: Path) -> None:
    """Of a paper longer than the context the longest beginning that fits is read; the note says how much that is."""
    paper = "\n".join([_SENTENCE] * 200)
    excerpt = example.cut_to_context(paper, bundled, 32)
    assert paper.startswith(excerpt.text)
    assert excerpt.num_all_words == 1600
    assert len(excerpt.text.split()) == excerpt.num_words < 1600
    rooms = [bundled.room(example.prompt_about(excerpt.text, question)) for question in example.QUESTIONS.values()]
    assert min(rooms) >= 32
    longer = " ".join([excerpt.text, paper.split()[excerpt.num_words]])
    assert min(bundled.room(example.prompt_about(longer, question)) for question in example.QUESTIONS.values()) < 32
    assert f"first {excerpt.num_words} words ({100 * excerpt.num_words / 1600:.0f} %)" in excerpt.note
    assert example.cut_to_context(_SENTENCE, bundled, 32).note is None
    with pytest.raises(ContextLengthError, match="max_new_tokens is 256"):
        example.cut_to_context(paper, bundled, 256)


def test_pdf(example: Any, tmp_path: Path) -> None:
    """A PDF is read as its text; a broken one, or one without text, is refused with the reason."""
    pytest.importorskip("pypdf")
    assert example.read_paper(_pdf(tmp_path / "paper.pdf", _SENTENCE)).strip() == _SENTENCE
    with pytest.raises(InputError, match="holds no text"):
        example.read_paper(_pdf(tmp_path / "blank.pdf", " "))
    (tmp_path / "broken.pdf").write_bytes(b"no pdf")
    with pytest.raises(InputError, match="cannot be read as a PDF"):
        example.read_paper(tmp_path / "broken.pdf")


def test_refusals(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake of the user's is one sentence on stderr and exit code 2."""
    assert example.main([str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert example.main([str(tmp_path / "latin.txt")]) == 2
    (tmp_path / "a.txt").write_text(_SENTENCE)
    assert example.main([str(tmp_path / "a.txt"), "--base", str(trio_path() / "base")]) == 2
    assert "expert" in capsys.readouterr().err
