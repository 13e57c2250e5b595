"""NIfTI slices against nibabel's own reading, whatever way the file stores them."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools

import numpy as np
import pytest

from resfit.data.decode import decode_image
from resfit.data.medical.nifti import count_slices, is_nifti, read_values
from resfit.errors import ImageError
from resfit.preprocessing import InputSpec, Reading

nibabel = pytest.importorskip("nibabel")
AS_IS = InputSpec(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,), resize_mode="none")
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
VALUES = np.random.default_rng(0).integers(-500, 2000, (5, 6, 7)).astype(np.int16)


def encoded(image) -> bytes:
    return image.to_bytes()


def volume(values=VALUES, affine=None, kind=nibabel.Nifti1Image) -> bytes:
    return encoded(kind(values, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine))


def shown(image, plane: str, number: int) -> np.ndarray:
    """As the module says: after `as_closest_canonical`, the first remaining axis to the right, the second up."""
    whole = nibabel.as_closest_canonical(image).get_fdata()
    return np.take(whole, number, axis=PLANES[plane]).T[::-1]


def test_every_way_of_storing_gives_the_same_view():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            for axis, (target, sign) in enumerate(zip(order, signs, strict=True)):
                affine[target, axis] = sign * (1 + target)
            affine[3, 3] = 1
            image = nibabel.Nifti1Image(VALUES, affine)
            data = encoded(image)
            for plane in PLANES:
                count = count_slices(data[:1000], plane)
                assert count == nibabel.as_closest_canonical(image).shape[PLANES[plane]]
                for number in (0, count - 1):
                    seen = read_values(data, Reading(plane=plane), number)
                    np.testing.assert_array_equal(seen, shown(image, plane, number))


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", ">i2"])
def test_values_after_slope_and_intercept_packed_or_not(kind, dtype):
    values = np.abs(VALUES).astype(dtype) if dtype != "uint8" else (np.abs(VALUES) % 256).astype("u1")
    image = getattr(nibabel, kind)(values, np.eye(4))
    image.header.set_slope_inter(*((1, 0) if "float" in dtype else (2.5, -7)))
    raw = encoded(image)
    loaded = type(image).from_bytes(raw)
    for data in (raw, gzip.compress(raw)):
        assert is_nifti(data)
        np.testing.assert_array_equal(read_values(data, Reading()), shown(loaded, "axial", 3))
        np.testing.assert_array_equal(read_values(data, Reading(frame=6)), shown(loaded, "axial", 6))


def test_pictures_span_the_slice_the_files_range_or_the_window():
    data = volume()
    values = shown(nibabel.Nifti1Image(VALUES, np.diag([1.0, 2.0, 3.0, 1.0])), "axial", 3)
    seen = decode_image(data, AS_IS)[..., 0]
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, (values - values.min()) / np.ptp(values) * 255, atol=1e-3)
    windowed = dataclasses.replace(AS_IS, reading=Reading(window=(500.0, 1000.0)))
    np.testing.assert_allclose(decode_image(data, windowed)[..., 0], np.clip(values / 1000, 0, 1) * 255, atol=1e-3)
    image = nibabel.Nifti1Image(VALUES, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header["cal_min"], image.header["cal_max"] = 0, 500
    np.testing.assert_allclose(
        decode_image(encoded(image), AS_IS)[..., 0], np.clip(values / 500, 0, 1) * 255, atol=1e-3
    )


def test_spacing_is_that_of_the_plane():
    block = np.zeros((40, 40, 9), np.float32)
    block[10:30, 15:25, :] = 1  # 20 of 1 mm across, 10 of 2 mm up: a square of 20 mm
    spec = InputSpec((32, 32), 1, mean=(0.0,), std=(1.0,), crop_fraction=1.0, reading=Reading(spacing=1.0))
    seen = decode_image(volume(block), spec)[..., 0]
    rows, columns = np.flatnonzero(seen.max(1) > 127), np.flatnonzero(seen.max(0) > 127)
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (6, 25)


def test_four_dimensions_two_and_colour():
    multilabel = np.stack([VALUES, VALUES + 1], axis=-1)
    np.testing.assert_array_equal(
        read_values(volume(multilabel), Reading(frame=0)), read_values(volume(), Reading(frame=0))
    )
    flat = volume(VALUES[:, :, 0])
    assert count_slices(flat, "axial") == 1
    np.testing.assert_array_equal(read_values(flat, Reading()), VALUES[:, :, 0].T[::-1])
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), np.uint8)
    seen = read_values(volume(colour.copy().view(kind)[..., 0]), Reading())
    np.testing.assert_array_equal(seen, colour[:, :, 3].swapaxes(0, 1)[::-1])
    three = InputSpec(size=(8, 8), resize_mode="none")
    np.testing.assert_allclose(decode_image(volume(colour.copy().view(kind)[..., 0]), three), seen, atol=1e-4)


def test_what_is_refused():
    data = volume()
    last, middle = Reading(frame=6), Reading()
    for changed, reading, reason in (
        (data[:-100], last, "truncated: 672 bytes, where the header declares 772"),
        (gzip.compress(data)[:-200], last, r"truncated|cannot be unpacked"),
        (put(data, 42, 30000, 30000, 30000), middle, "30000x30000 pixels"),
        (put(data, 42, 6000, 6000, 30000), middle, "more than the 536870912 that are allowed"),
        (put(data, 42, 5, 0, 7), middle, "an empty volume"),
        (put(data, 40, 9), middle, r"damaged: it declares .* dimensions"),
        (put(data, 70, 1234), middle, "damaged or unusual NIfTI file"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_values(changed, reading)
    assert read_values(data[:-100], middle).shape == (6, 5)  # what is asked for is there
    with pytest.raises(ImageError, match="it has 7 slices, and slice 7 is asked for"):
        read_values(data, Reading(frame=7))
    paired = put(data, 344)[:344] + b"ni1\0" + data[348:]
    with pytest.raises(ImageError, match="in a file of their own"):
        read_values(paired, Reading())


def test_a_bomb_is_not_unpacked():
    """A volume of 20 MB that declares a small one, and a packed one that never ends."""
    header = volume()[:352]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
        file.write(header + VALUES.tobytes(order="F"))
        for _ in range(100):
            file.write(bytes(2**20))
    import tracemalloc

    tracemalloc.start()
    seen = read_values(buffer.getvalue(), Reading(frame=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(seen, VALUES[:, :, 0].T[::-1])
    assert peak < 5_000_000


def put(data: bytes, place: int, *numbers: int) -> bytes:
    changed = bytearray(data)
    for number in numbers:
        changed[place : place + 2] = number.to_bytes(2, "little")
        place += 2
    return bytes(changed)
