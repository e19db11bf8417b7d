"""A page as bytes: the templates, and the files that go with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.contract.wording import count_of
from serving.answer import Body
from serving.pages.charts import HEIGHT, LOW
from serving.pages.figures import day_text, figure, moment_text, month_text, percent, short, visible

HTML = b"text/html; charset=utf-8"
_FOLDER = Path(__file__).parent


def _name_of(path: Path) -> str:
    """The name under which a file is served: with a hash of it, so that it may be kept for ever."""
    return f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}{path.suffix}"


STYLE, ICON = _FOLDER / "style.css", _FOLDER / "icon.svg"
ASSETS = {
    f"/pages/{_name_of(STYLE)}": (STYLE.read_bytes(), b"text/css; charset=utf-8"),
    f"/pages/{_name_of(ICON)}": (ICON.read_bytes(), b"image/svg+xml"),
}

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,  # names of keys and models are whatever a customer wrote
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(style=next(iter(ASSETS)), icon=list(ASSETS)[1], HEIGHT=HEIGHT, LOW=LOW)
_ENVIRONMENT.filters.update(
    count=count_of,
    day=day_text,
    figure=figure,
    moment=moment_text,
    month=month_text,
    percent=percent,
    short=short,
    visible=visible,
)


_TEMPLATES = {path.name: _ENVIRONMENT.get_template(path.name) for path in _FOLDER.glob("*.html")}


def page(template: str, *, lasting: bool = False, **shown: Any) -> Body:
    """The page that a template makes of what is to be shown. lasting: until the next publication."""
    html = _TEMPLATES[template].render(shown)
    return Body(html.encode("utf-8", "replace"), lasting=lasting, content_type=HTML)
