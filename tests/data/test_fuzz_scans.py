"""Damaged DICOM, NIfTI, TIFF and PNG files: read, or refused with a reason; never a crash, a hang or a flood."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_high_bit_depth import TIFFS
from tests.fuzzing import survive
from tests.scans import dicom, read

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
RAMP = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
COMPRESSED = (
    *("JPGExtended", "JPEG2000", "JPEGLSNearLossless_08", "SC_rgb_jpeg_dcmtk", "SC_rgb_rle", "SC_rgb_small_odd_jpeg"),
    *("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jls_lossy_line", "SC_rgb_rle_16bit_2frame"),
)


def dicom_files(folder: Path) -> list[Path]:
    own = {
        "grey.dcm": dicom(RAMP, WindowCenter=[900, 20], WindowWidth=[1500, 50], RescaleSlope=2, RescaleIntercept=-9),
        "frames.dcm": dicom(np.stack([RAMP] * 5), PatientID="1"),
        "deflated.dcm": dicom(RAMP, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian),
        "colour.dcm": dicom(np.full((20, 30, 3), 7, np.uint8)),
    }
    for name, data in own.items():
        (folder / name).write_bytes(data)
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    more = [root / f"{name}.dcm" for name in (*COMPRESSED, "MR_small_bigendian", "examples_palette", "rtdose")]
    return [*(folder / name for name in own), *more]


def nifti_files(folder: Path) -> list[Path]:
    values = np.random.default_rng(0).integers(0, 900, (20, 22, 9)).astype(np.int16)
    paths = []
    for name, kind in (("one", nibabel.Nifti1Image), ("two", nibabel.Nifti2Image)):
        image = kind(values, np.array([[0, 2, 0, 1], [-1, 0, 0, 2], [0, 0, 3, 0], [0, 0, 0, 1.0]]))
        image.header.set_slope_inter(2, 1)
        (folder / f"{name}.nii").write_bytes(image.to_bytes())
        (folder / f"{name}.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
        paths += [folder / f"{name}.nii", folder / f"{name}.nii.gz"]
    return paths


def deep_files(folder: Path) -> list[Path]:
    Image.fromarray(RAMP).save(folder / "grey.png")
    Image.fromarray(RAMP).save(folder / "grey.tif")
    Image.fromarray(RAMP).save(folder / "packed.tif", compression="tiff_lzw")
    Image.fromarray(RAMP.astype(np.float32)).save(folder / "float.tif")
    (folder / "grey.pgm").write_bytes(b"P5 40 48 65535\n" + RAMP.byteswap().tobytes())
    (folder / "colour.png").write_bytes(colour_png())
    (folder / "colour.tif").write_bytes(colour_tiff())
    for number, text in enumerate(TIFFS.values()):
        (folder / f"{number}.tif").write_bytes(base64.b64decode(text))
    return sorted(folder.iterdir())


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (12, 10, 3)).astype(np.uint16)


def colour_png() -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(colours()).numpy()


def colour_tiff() -> bytes:
    """The least that a TIFF file of 16 bits a colour is: one strip, not compressed."""
    values = colours()
    tags = [(256, 3, 1, 10), (257, 3, 1, 12), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 12), (279, 4, 1, values.nbytes)]
    data = b"II*\0\x10\x03\0\0" + b"\x10\0" * 3 + values.astype("<u2").tobytes()
    data += bytes(0x310 - len(data)) + len(tags).to_bytes(2, "little")
    for tag, kind, count, value in tags:
        data += b"".join(
            number.to_bytes(size, "little") for number, size in ((tag, 2), (kind, 2), (count, 4), (value, 4))
        )
    return data + bytes(4)


@pytest.mark.parametrize("kind", ["dicom", "nifti", "deep"])
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    fuzz(kind, tmp_path, 150)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicom", "nifti", "deep"])
def test_many_damaged_files_are_read_or_refused(kind, tmp_path):
    fuzz(kind, tmp_path, 2000)
    fuzz(kind, tmp_path, 2000, seed=1, kilobytes=1)


def test_damaged_headers_do_not_stop_a_search(tmp_path):
    (tmp_path / "real").mkdir()
    files = [path for path in dicom_files(tmp_path / "real") if path.stat().st_size < 40_000]
    found = survive("tests.scans:scan", files + nifti_files(tmp_path / "real"), tmp_path, 150, kilobytes=1)
    assert found["read"] == 150


def fuzz(kind: str, folder: Path, count: int, **options) -> None:
    real = folder / "real"
    real.mkdir(exist_ok=True)
    files = {"dicom": dicom_files, "nifti": nifti_files, "deep": deep_files}[kind](real)
    found = survive("tests.scans:read", files, folder, count, **options)
    print(kind, found)
    assert found["read"] > count / 20
    assert found["refused"] > count / 20


def test_colour_of_sixteen_bits_keeps_its_depth(tmp_path):
    for path in deep_files(tmp_path):
        if path.stem == "colour":
            from resfit.data.decode import decode_image, is_deep
            from resfit.preprocessing import InputSpec

            assert is_deep(path)
            seen = decode_image(path, InputSpec(resize_mode="none"))
            np.testing.assert_allclose(seen, colours() / 257, rtol=1e-6)
            assert read(path).shape == (16, 16, 3)
