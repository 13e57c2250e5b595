"""An export as a folder: what stands beside the network in every format.

::

    contract.json        what goes in, what comes out, labels, temperature
    labels.txt           the labels, one a line, in the order of the outputs
    verification.json    how it compares with Keras, on how many images
    README.md            the model card, with code that loads it
    SHA256SUMS           the checksum of every other file; `sha256sum -c SHA256SUMS` checks them
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError
from resfit.export.base import ExportJob, Written
from resfit.storage.atomic import write_json, write_text

KIND = "resfit export"
FORMAT = 1
CONTRACT = "contract.json"
LABELS = "labels.txt"
VERIFICATION = "verification.json"
CARD = "README.md"
SUMS = "SHA256SUMS"

_SIDE = (CONTRACT, LABELS, VERIFICATION, CARD, SUMS)
_MOST_BYTES = 10_000_000


def check_target(out: Path) -> None:
    """Makes sure that an export may be written here.

    Raises:
        ArgumentError: Something else stands there.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and (is_export(out) or not any(out.iterdir())):
        return
    raise ArgumentError(
        "the output must be a new or empty folder, or an earlier resfit export. "
        f"Received: {str(out)!r}, which holds something else. Name another folder or remove it."
    )


def is_export(folder: Path) -> bool:
    """Says whether a folder holds an export, whole or damaged."""
    return _description(folder).get("kind") == KIND


def contract(job: ExportJob, written: Written, format: str) -> dict[str, Any]:
    """Returns the content of ``contract.json``.

    Args:
        job: The export.
        written: What its format wrote.
        format: The format.
    """
    subject = job.subject
    spec = subject.input_spec
    return {
        "kind": KIND,
        "version": FORMAT,
        "name": subject.name,
        "format": format,
        "precision": job.precision,
        "files": list(written.files),
        "input": written.input,
        "image": {
            **spec.to_dict(),
            "resize_size": list(spec.resize_size),
            "rule": resize_rule(job),
            **({"fill": list(spec.fill)} if spec.resize_mode == "letterbox" else {}),
            "normalisation": "(x * scale - mean) / std, channel by channel, in the network's channel order",
        },
        "outputs": list(written.outputs),
        **written.facts,
        **subject.about(written.temperature_applied),
        "labels": list(subject.labels),
    }


def resize_rule(job: ExportJob) -> str:
    """Says in a sentence how an image file becomes the network's input."""
    spec = job.subject.input_spec
    height, width = spec.size
    if spec.resize_mode == "none":
        return "Images are not resized."
    method = f"antialiased {spec.interpolation} interpolation" if spec.interpolation != "nearest" else "nearest pixel"
    if spec.resize_mode == "squash":
        return f"Resize to {width}x{height} pixels, whatever the aspect ratio ({method})."
    if spec.resize_mode == "letterbox":
        return (
            f"Scale the image as a whole, as large as fits into {width}x{height} pixels, aspect ratio kept ({method}); "
            f"put it into the middle (an odd pixel at the right and the bottom), the rest is {list(spec.fill)}. Back "
            "to the image: take the left and top padding off, divide by the scale."
        )
    box = spec.resize_size
    return (
        f"Resize so that the image just covers {box[1]}x{box[0]} pixels, aspect ratio kept ({method}), "
        f"then cut {width}x{height} pixels out of its centre."
    )


def write_side_files(folder: Path, described: dict[str, Any], verification: dict[str, Any], card: str) -> None:
    """Writes what stands beside the network; the checksums come last.

    Args:
        folder: The export, with the network in it.
        described: Content of ``contract.json``.
        verification: Content of ``verification.json``.
        card: Content of ``README.md``.
    """
    write_json(folder / CONTRACT, described)
    write_text(folder / LABELS, labels_text(described["labels"]))
    write_json(folder / VERIFICATION, verification)
    write_text(folder / CARD, card)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, "".join(f"{_sha256(folder / name)}  {name}\n" for name in names if name != SUMS))


def labels_text(labels: list[str]) -> str:
    """Returns labels one a line; a line break inside one becomes a space."""
    return "".join(" ".join(label.splitlines()) + "\n" for label in labels)


def network_bytes(folder: Path) -> int:
    """Returns the size of the network in bytes, without the files beside it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in _SIDE)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / CONTRACT
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
