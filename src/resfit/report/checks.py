"""What the data checks found, as one page that needs no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resfit.data.thumbnails import thumbnails
from resfit.errors import ArgumentError
from resfit.quality.checking import Checks, label_precision
from resfit.report.templates import address, plain, template, text_of
from resfit.storage.atomic import write_text

_PAGE = "checks.html.j2"
#: Findings of a kind, and copies of one image, that are shown.
_SHOWN, _COPIES = 24, 4


def check_target(path: str | os.PathLike[str]) -> None:
    """Makes sure that a report can be written, before the work.

    Raises:
        ArgumentError: The name does not end in ``.html``.
        MissingDependencyError: jinja2 is not installed.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"the report must end in .html. Received: {str(path)!r}.")
    template(_PAGE)


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

    groups = [group for group in _groups(found) if group["count"]]
    wanted = sorted({position for group in groups for item in group["items"] for position in item["positions"]})
    images = found.images
    small = dict(zip(wanted, thumbnails([images.paths[position] for position in wanted]), strict=True))
    for item in (item for group in groups for item in group["items"]):
        item["pictures"] = [
            {"name": plain(Path(found.name(position))), "source": address(small[position])}
            for position in item["positions"]
        ]
    return template(_PAGE).render(
        findings=found.findings(),
        facts=found.to_dict(),
        kind="labels" if images.multilabel else "classes",
        groups=groups,
        style=text_of("page.css"),
        version=resfit.__version__,
        fingerprint=images.fingerprint,
    )


def _groups(found: Checks) -> list[dict[str, Any]]:
    """Returns each kind of finding with its title, how many there are, and the first of them."""
    names = found.images.classes

    def label(position: int) -> str:
        return found.images.label_text(position) or "no label"

    def group(title: str, listed: Any, item: Any, count: int | None = None) -> dict[str, Any]:
        shown = [dict(zip(("positions", "note"), item(one), strict=True)) for one in listed[:_SHOWN]]
        return {
            "title": title,
            "count": len(listed) if count is None else count,
            "more": len(listed) > _SHOWN,
            "items": shown,
        }

    return [
        group(
            "Images in both training and test set",
            found.leaks,
            lambda leak: (leak[:2], "exact copy" if leak[2] == "exact" else "near duplicate"),
        ),
        group(
            "Duplicates with different labels",
            found.conflicts,
            lambda pair: (pair, " / ".join(label(one) for one in pair)),
        ),
        group(
            f"Labels worth a look ({label_precision()})",
            found.label_errors,
            lambda error: ([error.position], " → ".join(error.texts(names)) + "?"),
        ),
        group(
            "Exact copies",
            found.exact,
            lambda same: (same[:_COPIES], f"{len(same)} times"),
            count=sum(len(same) - 1 for same in found.exact),
        ),
        group("Near duplicates", found.near.tolist(), lambda pair: (pair, "")),
        *(
            group(f"{name.capitalize()} images", at, lambda position: ([position], ""))
            for name, at in vars(found.looks).items()
        ),
        *(
            group(
                f"The same mark, most of class “{names[mark.label]}”",
                mark.positions,
                lambda position: ([position], label(position)),
            )
            for mark in found.marks
        ),
    ]
