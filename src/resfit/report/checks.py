"""What the data checks found, as one page that needs no network."""

from __future__ import annotations

import base64
import importlib.resources
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from resfit.checking import Checks
from resfit.errors import ArgumentError, ImageError, MissingDependencyError
from resfit.files import write_text

_SHOWN = 24
_SIDE = 96


def check_target(path: str | os.PathLike[str]) -> None:
    """Makes sure that a report can be written, before the work.

    Raises:
        ArgumentError: The name does not end in ``.html``.
        MissingDependencyError: jinja2 is not installed.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"the report must end in .html. Received: {str(path)!r}.")
    _template()


def write(found: Checks, path: str | os.PathLike[str]) -> None:
    """Writes the report.

    Args:
        found: What was found.
        path: The file, ending in ``.html``.

    Raises:
        ArgumentError: The name has another ending.
        MissingDependencyError: jinja2 is not installed.
        OSError: It cannot be written.
    """
    check_target(path)
    write_text(path, render(found))


def render(found: Checks) -> str:
    """Returns the report as HTML.

    Args:
        found: What was found.
    """
    import resfit

    names, labels = found.images.classes, found.images.labels
    pictures = _Pictures(found)

    def shown(*positions: int, note: str = "") -> dict[str, Any]:
        return {"pictures": [pictures.one(position) for position in positions], "note": note}

    def label(position: int) -> str:
        return names[labels[position]] if labels[position] >= 0 else "no label"

    groups = [
        ("Test images that are there for training too", len(found.leaks),
         [shown(test, other, note=f"{kind} copy" if kind == "exact" else "near duplicate")
          for test, other, kind in found.leaks[:_SHOWN]]),
        ("Duplicates with different labels", len(found.conflicts),
         [shown(a, b, note=f"{label(a)} / {label(b)}") for a, b in found.conflicts[:_SHOWN]]),
        ("Labels that are probably wrong", len(found.label_errors),
         [shown(item.position, note=f"{names[item.label]} → {names[item.suggested]}?")
          for item in found.label_errors[:_SHOWN]]),
        ("Exact copies", sum(len(group) - 1 for group in found.exact),
         [shown(*group[:4], note=f"{len(group)} times") for group in found.exact[:_SHOWN]]),
        ("Near duplicates", len(found.near), [shown(int(a), int(b)) for a, b in found.near[:_SHOWN]]),
        *((f"{name.capitalize()} images", len(at), [shown(int(place)) for place in at[:_SHOWN]])
          for name, at in vars(found.looks).items()),
        *((f"The same mark, most of class “{names[mark.label]}”", len(mark.positions),
           [shown(int(place), note=label(int(place))) for place in mark.positions[:_SHOWN]]) for mark in found.marks),
    ]  # fmt: skip
    return _template().render(
        findings=found.findings(),
        facts=found.to_dict(),
        groups=[{"title": title, "count": count, "items": items} for title, count, items in groups if count],
        version=resfit.__version__,
        fingerprint=found.images.fingerprint,
    )


class _Pictures:
    """Small pictures as data that stands in the page."""

    def __init__(self, found: Checks):
        self._found = found

    def one(self, position: int) -> dict[str, str]:
        from PIL import Image

        from resfit.data import deep
        from resfit.data.decode import decode_image
        from resfit.preprocessing import InputSpec

        path = self._found.images.paths[position]
        contract = InputSpec(size=(_SIDE, _SIDE), resize_mode="squash", crop_fraction=1.0)
        try:
            pixels = deep.eight_bits(decode_image(path, contract))
        except ImageError:  # gone or changed since
            pixels = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=80)
        text = os.fsencode(self._found.name(position)).decode("utf-8", "backslashreplace")
        return {"name": text, "data": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()}


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            'Reports need jinja2, which is not installed. Install it: pip install "resfit[report]".'
        ) from error
    source = (importlib.resources.files("resfit") / "report" / "checks.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(source)
