"""Whose images they are: patients, sex and site from a table or from DICOM's own tags, and what may be told of them.

A name or number of a patient is used to keep her images together and then forgotten: what goes on is ``patient 7``,
``site 2``.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from resfit.data import decode, members
from resfit.data.medical import dicom, frames, nifti
from resfit.errors import ImageError
from resfit.preprocessing import Reading

#: Columns of a table that say what must stay together, in the order of preference; all but the first name a patient.
GROUP_COLUMNS = ("group", "patient", "patient_id")
#: Further columns that travel with the images.
EXTRA_COLUMNS = ("site", "sex")
#: Endings of scans; files without an ending, or with a number for one, are looked into.
SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".nii"})

# endings of files that are not looked into
_ORDINARY = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp")
_BEGINNING = 4096
# frames of one file that are believed in, and the bytes that each takes at least
_MOST_FRAMES = 100_000
_LEAST_BYTES = 8
_SUBJECT = re.compile(r"(?:^|[/\\_])sub-([A-Za-z0-9]+)")


@dataclasses.dataclass(frozen=True)
class CohortEntry:
    """A file that was found.

    Attributes:
        path: The file, or one frame of it.
        label: Its class, if it has one class.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        group: What must stay together, if the source says.
        extra: Further columns, by name.
        labels: Its labels, sorted, where it may have several.
    """

    path: Path
    label: str | None
    split: str | None = None
    group: str | None = None
    extra: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()

    def value(self, name: str) -> str:
        """Returns a further column's value, empty where there is none."""
        return dict(self.extra).get(name, "")


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What :func:`described` found.

    Attributes:
        entries: The images, a frame each where that was asked for, without identifiers in ``group``.
        medical: Whether patients are behind them: a scan is among them, or a column names patients.
        columns: Further columns: for each name a value for each entry, empty where it is not known.
        warnings: What looks odd.
    """

    entries: list[CohortEntry]
    medical: bool
    columns: dict[str, tuple[str, ...]]
    warnings: list[str]


def is_scan_name(path: Path) -> bool:
    """Says whether a file may be a scan by its ending."""
    return path.suffix.lower() in SUFFIXES or path.name.lower().endswith(".nii.gz")


def is_scan_file(path: Path) -> bool:
    """Says whether a file is a scan by its ending, or, where that says nothing, by how it begins."""
    if is_scan_name(path):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    return _beginning(path)[128:132] == b"DICM"


def described(entries: Sequence[CohortEntry], reading: Reading, *, patients: bool = False) -> Cohort:
    """Reads what the headers of scans say of them, and takes the identifiers away.

    Args:
        entries: Files that were found.
        reading: Which frames and files of a series are images.
        patients: Whether the groups of the entries are patients.

    Raises:
        MissingDependencyError: What reads the scans is not installed.
    """
    heads = [_header(entry.path, reading) for entry in entries]
    medical = patients or any(head is not None for head in heads)
    warnings: list[str] = []
    pairs = list(zip(entries, heads, strict=True))
    if reading.series == "middle":
        kept = _middles(pairs)
        if len(kept) < len(pairs):
            warnings.append(f"{len(pairs) - len(kept)} files beside the middle one of their series are left out")
        pairs = kept
    if not medical:
        return Cohort([entry for entry, _ in pairs], False, _columns(pairs, ()), warnings)
    groups = _groups(pairs, warnings)
    sites = sorted({head.site for _, head in pairs if head is not None and head.site})
    whole = [dataclasses.replace(entry, group=group) for (entry, _), group in zip(pairs, groups, strict=True)]
    found = [
        (piece, head)
        for number, (entry, (_, head)) in enumerate(zip(whole, pairs, strict=True))
        for piece in (_pieces(entry, head, f"file {number + 1}") if reading.frame == "each" else [entry])
    ]
    return Cohort([entry for entry, _ in found], True, _columns(found, sites), warnings)


def _header(path: Path, reading: Reading) -> dicom.DicomHeader | None:
    """Returns what a scan says of itself; ``None`` for other images."""
    if os.fspath(path).lower().endswith(_ORDINARY):
        return None
    file_path, _ = frames.parted(path)
    member = members.member_of(file_path)
    if member is not None and member.kind == "row":
        return None
    beginning = _beginning(file_path)
    try:
        if dicom.is_dicom(beginning):
            with open(file_path, "rb") if member is None else io.BytesIO(members.read(member)) as file:
                return dicom.read_header(file)
        if nifti.is_nifti(beginning):
            subject = _SUBJECT.search(os.fspath(file_path))
            return dicom.DicomHeader(subject[1] if subject else "", frames=nifti.count_slices(beginning, reading.plane))
    except (ImageError, OSError):  # decoding will say why
        return dicom.DicomHeader()
    return dicom.DicomHeader() if is_scan_name(file_path) else None


def _beginning(path: Path) -> bytes:
    try:
        if not members.container(path).is_file() or members.size(path) > decode.MAX_BYTES:
            return b""
        return members.beginning(path, _BEGINNING)
    except OSError:
        return b""


def _middles(
    pairs: list[tuple[CohortEntry, dicom.DicomHeader | None]],
) -> list[tuple[CohortEntry, dicom.DicomHeader | None]]:
    """Keeps of each series the file in the middle; what belongs to none stays."""
    series: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, (entry, head) in enumerate(pairs):
        if head is not None and head.series:
            series[head.series, entry.label, entry.labels, entry.split].append(place)
    kept = set(range(len(pairs)))
    for places in series.values():
        ordered = sorted(places, key=lambda place: (pairs[place][1].number, pairs[place][0].path))  # type: ignore[union-attr]
        kept -= set(places) - {ordered[(len(ordered) - 1) // 2]}
    return [pairs[place] for place in sorted(kept)]


def _groups(pairs: list[tuple[CohortEntry, dicom.DicomHeader | None]], warnings: list[str]) -> list[str | None]:
    """Returns for each image which patient's it is, as a number: ``patient 1`` is the first to come."""
    stated = [entry.group for entry, _ in pairs]
    tagged = [head.patient or None if head is not None else None for _, head in pairs]
    if len(set(tagged)) == 1 and tagged[0] is not None and len(tagged) > 1 and not any(stated):
        warnings.append("all images have the same patient ID, so the split is by image and not by patient")
        tagged = [None] * len(tagged)
    names = [one or other for one, other in zip(stated, tagged, strict=True)]
    missing = sum(name is None for name in names)
    if missing and missing < len(names):
        warnings.append(f"{missing} of {len(names)} images have no patient ID and are split one by one")
    elif missing and "same patient" not in "".join(warnings):
        warnings.append("no image has a patient ID: the split is by image and not by patient")
    numbers: dict[str, int] = {}
    return [None if name is None else f"patient {numbers.setdefault(name, len(numbers) + 1)}" for name in names]


def _pieces(entry: CohortEntry, head: dicom.DicomHeader | None, name: str) -> list[CohortEntry]:
    """Returns an entry for each frame of a file; frames of one file stay together even without a patient."""
    if head is None or head.frames < 2 or frames.parted(entry.path)[1] is not None:
        return [entry]
    try:
        most = min(_MOST_FRAMES, members.size(entry.path) // _LEAST_BYTES)
    except OSError:
        most = 1
    if head.frames > most:  # its header lies: decoding will say so, once
        return [entry]
    group = entry.group or name
    return [
        dataclasses.replace(entry, path=frames.address(entry.path, number), group=group)
        for number in range(head.frames)
    ]


def _columns(
    pairs: Sequence[tuple[CohortEntry, dicom.DicomHeader | None]], sites: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    def tagged(name: str, head: dicom.DicomHeader | None) -> str:
        if head is None:
            return ""
        return {
            "sex": head.sex if head.sex in ("F", "M", "O") else "",
            "site": f"site {sites.index(head.site) + 1}" if head.site else "",
        }.get(name, "")

    names = {name: None for entry, _ in pairs for name, _ in entry.extra}
    if any(head is not None for _, head in pairs):
        names = {**dict.fromkeys(EXTRA_COLUMNS), **names}
    columns = {}
    for name in names:
        values = tuple(entry.value(name) or tagged(name, head) for entry, head in pairs)
        if any(values):
            columns[name] = values
    return columns
