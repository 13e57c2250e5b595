"""What the pages have in common: templates that escape every name, one style, and pictures that stand in the page."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resfit import dependencies

_FOLDER = Path(__file__).parent


def check_installed() -> None:
    """Makes sure that reports can be written, before anything is measured for one.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    dependencies.require("a report", "jinja2")


def template(name: str, **filters: Callable[[Any], str]) -> Any:
    """Returns a template of this folder; :func:`plain` is among its filters.

    Args:
        name: Its file.
        **filters: Further filters.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    check_installed()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(plain=plain, **filters)
    return environment.get_template(name)


def text_of(name: str) -> str:
    """Returns a file of this folder, such as ``"page.css"``."""
    return (_FOLDER / name).read_text("utf-8")


def plain(value: Any) -> str:
    """Returns text that shows every character that would not show, or would turn the text around it."""
    text = os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, os.PathLike) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def address(image: bytes) -> str:
    """Returns a JPEG as a ``data:`` address; ``""`` for none."""
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" if image else ""
