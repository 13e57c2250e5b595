"""Synthetic scans for the tests: DICOM files of any kind, written by pydicom, and what reads a damaged one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np


def dicom(values: np.ndarray, **tags) -> bytes:
    """Returns a DICOM file of grey values ``(rows, columns)``, or ``(frames, rows, columns)``, or RGB of uint8.

    Args:
        values: Integers of 8, 16 or 32 bits, or uint8 ``(rows, columns, 3)``.
        **tags: Further elements by keyword; one given as None is left out. ``syntax`` is the transfer syntax.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    colour = values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8
    frames = values.shape[0] if values.ndim == 3 and not colour else 1
    rows, columns = values.shape[:2] if frames == 1 and not (values.ndim == 3 and not colour) else values.shape[1:3]
    bits = 8 * values.dtype.itemsize
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    syntax = tags.pop("syntax", ExplicitVRLittleEndian)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[values.tobytes().hex()])
    ds.Rows, ds.Columns = int(rows), int(columns)
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    if frames > 1 or (values.ndim == 3 and not colour):
        ds.NumberOfFrames = frames
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write_patient(folder: Path, label: str, number: int, *, images: int = 2, **tags) -> list[Path]:
    """Writes images of a patient below a class folder: bright in the middle for ``sick``, at 12 bits."""
    paths = []
    for image in range(images):
        random = np.random.default_rng([number, image])
        values = random.integers(800, 1200, (40, 32), np.uint16)
        if label == "sick":
            values[12:28, 8:24] += 2200
        path = folder / label / f"p{number:03}" / f"IM{image:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {"PatientID": f"ID{number}", "PatientSex": "FM"[number % 2], "InstitutionName": f"clinic {number % 3}"}
        path.write_bytes(
            dicom(values, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096, **{**known, **tags})
        )
        paths.append(path)
    return paths


def read(path: Path) -> np.ndarray:
    """Reads any image as a small network would."""
    from resfit.data.decode import decode_image
    from resfit.preprocessing import InputSpec

    return decode_image(path, InputSpec(size=(16, 16)))


def scan(path: Path):
    """Looks for images as `resfit predict` does: headers, frames, DICOMDIR."""
    from resfit.data.dataset import scan_images
    from resfit.preprocessing import Reading

    return scan_images([path], reading=Reading(frame="each"))
