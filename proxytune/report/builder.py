"""Pages that load nothing: a template that escapes its values, style and script inside and hashed in the page's CSP."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_BROKEN = re.compile("[\ud800-\udfff]")


def build(folder: Path, *, title: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Return the page that `folder` has as page.html, page.css and, if it needs a script, page.js.

    page.html extends this package's shell.html.
    """
    style = (folder / "page.css").read_text(encoding="utf-8")
    script_path = folder / "page.js"
    script = script_path.read_text(encoding="utf-8") if script_path.exists() else ""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= filters
    page = environment.get_template("page.html").render(
        title=title,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        **values,
    )
    return _BROKEN.sub("\ufffd", page)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
