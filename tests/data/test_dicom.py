"""DICOM files by their values, against pydicom's own functions; damaged and hostile ones by their reasons."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from resfit.data.decode import decode_image, is_deep
from resfit.data.medical.dicom import is_dicom, read_frame
from resfit.errors import ArgumentError, ImageError
from resfit.preprocessing import InputSpec, Reading
from tests.scans import dicom

pydicom = pytest.importorskip("pydicom")
ROOT = pathlib.Path(__file__).parents[2]
AS_IS = InputSpec(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,), resize_mode="none")
RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)

# how the reasons begin of files without an image, and the reason of each that is damaged
NO_IMAGE = ("a DICOM file without an image", "a DICOMDIR", "its Rows (0028,0010)")
DAMAGED = {
    "MR_truncated.dcm": "truncated: 8130 bytes of pixels, where the header declares 8192",
    "badVR.dcm": "damaged: its Number of Frames (0028,0008) is not a number",
    "JPEG-lossy.dcm": "damaged: its Pixel Data (7FE0,0010) cannot be decoded",
    "JPEG2000-embedded-sequence-delimiter.dcm": (
        "damaged or truncated: the header of its compressed frame is not sound"
    ),
}


def read(data: bytes, **reading) -> np.ndarray:
    return decode_image(data, dataclasses.replace(AS_IS, reading=Reading(**reading)))[..., 0]


def files_of_pydicom() -> list[pathlib.Path]:
    found = sorted((pathlib.Path(pydicom.__file__).parent / "data" / "test_files").rglob("*"))
    try:
        import data_store
    except ImportError:
        more = []
    else:
        more = sorted((pathlib.Path(data_store.__file__).parent / "data").rglob("*.dcm"))
    return [path for path in (*found, *more) if path.is_file() and is_dicom(path.read_bytes())]


def expected(path: pathlib.Path, index: int) -> np.ndarray | Exception:
    """What pydicom's functions give, or what they raise."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    try:
        ds = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in ds.file_meta and "PixelData" in ds:
            ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        whole = pixel_array(ds)
        values = whole[index] if int(ds.get("NumberOfFrames") or 1) > 1 else whole
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            return apply_color_lut(values, ds)[..., :3]
        if values.ndim == 3:
            return values
        if "PerFrameFunctionalGroupsSequence" in ds:
            for group in (ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence[index]):
                for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                    for item in group.get(name, []):
                        ds.update(item)
        return apply_voi_lut(apply_modality_lut(values, ds), ds)
    except Exception as error:
        return error


def tried(data: bytes, index: int):
    try:
        return read_frame(data, Reading(frame=index)), ""
    except ImageError as error:
        return None, str(error)


def compare_all(paths: list[pathlib.Path]) -> tuple[int, int, int]:
    """Compares every file, and returns how many have equal values, have no image, are damaged."""
    equal = empty = damaged = 0
    for path in paths:
        data = path.read_bytes()
        ds = pydicom.dcmread(path, force=True)
        try:
            count = int(ds.get("NumberOfFrames") or 1)
        except ValueError:
            count = 1
        for index in {0, (count - 1) // 2}:
            wanted = expected(path, index)
            frame, reason = tried(data, index)
            if frame is None:
                assert isinstance(wanted, Exception), (path.name, reason)
                with pytest.raises(ImageError, match=f"^{re.escape(reason)}$"):
                    decode_image(data, AS_IS)
                if path.name in DAMAGED:
                    damaged += 1
                    assert reason == DAMAGED[path.name]
                else:
                    empty += 1
                    assert reason.startswith(NO_IMAGE), path.name
                    assert "Rows" not in ds
                break
            assert not isinstance(wanted, Exception), (path.name, wanted)
            np.testing.assert_array_equal(frame.shown(frame.raw), wanted, err_msg=path.name)
        else:
            equal += 1
            seen = decode_image(data, InputSpec(size=(8, 8), resize_mode="none"))
            if frame.black is not None:
                wanted = np.asarray(wanted, np.float64) - frame.black
                wanted = np.clip(wanted * 255 / (frame.white - frame.black), 0, 255)
                wanted = 255 - wanted if frame.inverted else wanted
                if count == 1:
                    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
                    np.testing.assert_allclose(seen, np.broadcast_to(wanted, seen.shape), atol=1e-4, err_msg=path.name)
            assert 0 <= seen.min() <= seen.max() <= 255, path.name
    return equal, empty, damaged


@pytest.mark.filterwarnings("ignore")
def test_every_small_file_of_pydicom_is_read_to_its_values_or_refused(capsys):
    counts = compare_all([path for path in files_of_pydicom() if path.stat().st_size < 320_000])
    with capsys.disabled():
        print(f"\npydicom's files: {counts[0]} equal, {counts[1]} without an image, {counts[2]} damaged")
    assert counts[0] >= 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_file_of_pydicom_is_read_to_its_values_or_refused(capsys):
    counts = compare_all(files_of_pydicom())
    with capsys.disabled():
        print(f"\npydicom's files: {counts[0]} equal, {counts[1]} without an image, {counts[2]} damaged")
    assert counts[0] >= 150


# values, by hand


def test_monochrome_one_is_inverted_and_signed_values_keep_their_sign():
    values = np.array([[-1024, 0], [1000, 3071]], np.int16)
    plain = read(dicom(values))
    np.testing.assert_allclose(plain, (values + 1024.0) / 4095 * 255, rtol=1e-6)
    np.testing.assert_allclose(read(dicom(values, PhotometricInterpretation="MONOCHROME1")), 255 - plain, atol=1e-4)
    np.testing.assert_allclose(read(dicom(values, PresentationLUTShape="INVERSE")), 255 - plain, atol=1e-4)


def test_rescaling_and_the_window_of_choice():
    values = np.array([[0, 1000], [1024, 1064], [1104, 4000]], np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}
    data = dicom(values, **tags, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    units = values - 1024.0
    # PS3.3 C.11.2.1.2.1: the linear function of centre and width
    for window, (centre, width) in enumerate(((40, 400), (-600, 1500))):
        wanted = np.clip((units - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
        np.testing.assert_allclose(read(data, window=window), wanted, atol=1e-3)
    np.testing.assert_allclose(read(data, window=(100.0, 200.0)), np.clip(units / 200, 0, 1) * 255, atol=1e-3)
    with pytest.raises(ImageError, match="2 windows, and window 2 is asked for"):
        read(data, window=2)


def test_a_file_without_a_window_spans_its_values_and_padding_is_black():
    values = np.array([[-2000, 100], [200, 300]], np.int16)
    seen = read(dicom(values, PixelPaddingValue=-2000))
    np.testing.assert_allclose(seen, [[0, 0], [127.5, 255]], atol=1e-4)
    assert read(dicom(np.full((4, 4), 7, np.uint16))).max() == 0


def test_values_of_many_bits_go_through_the_window_too():
    values = np.array([[0, 10**6], [2 * 10**6, 4 * 10**6]], np.uint32)
    seen = read(dicom(values, WindowCenter=10**6, WindowWidth=2 * 10**6, VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(seen, [[0, 127.5], [255, 255]], atol=1e-3)
    np.testing.assert_allclose(read(dicom(values)), values / 4e6 * 255, atol=1e-3)


def test_frames_are_each_middle_and_chosen(tmp_path):
    values = np.stack([RAMP + 100 * number for number in range(5)])
    data = dicom(values, WindowCenter=512, WindowWidth=1024, BitsStored=10, HighBit=9)
    wanted = [np.clip((frame - 511.5) / 1023 + 0.5, 0, 1) * 255 for frame in values]
    np.testing.assert_allclose(read(data), wanted[2], atol=1e-3)
    np.testing.assert_allclose(read(data, frame=4), wanted[4], atol=1e-3)
    path = tmp_path / "scan"
    path.write_bytes(data)
    for number in range(5):
        seen = decode_image(f"{path}#frame={number}", AS_IS)[..., 0]
        np.testing.assert_allclose(seen, wanted[number], atol=1e-3)
    with pytest.raises(ImageError, match="it has 5 frames, and frame 5 is asked for"):
        decode_image(f"{path}#frame=5", AS_IS)


def test_colour_of_eight_bits_and_grey_for_three_channels():
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    three = InputSpec(size=(8, 8), resize_mode="none")
    np.testing.assert_allclose(decode_image(dicom(colour), three), colour, atol=1e-4)
    np.testing.assert_allclose(
        decode_image(dicom(colour), AS_IS)[..., 0], colour @ np.array([0.299, 0.587, 0.114]), atol=1e-3
    )
    grey = decode_image(dicom(RAMP), three)
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, 2))


def test_sixteen_bits_are_not_cut_to_eight():
    other = RAMP + 20000
    low_bit = other.copy()
    low_bit[3, 3] += 1
    tags = {"WindowCenter": 32768, "WindowWidth": 65536}
    first, second = read(dicom(other, **tags)), read(dicom(low_bit, **tags))
    assert first.dtype == np.float32
    assert 0 < second[3, 3] - first[3, 3] < 1 / 200
    assert len(np.unique(first)) == 64


def test_spacing_scales_to_millimetres():
    values = np.zeros((100, 50), np.uint16)
    values[40:60, 20:30] = 1000  # 20 rows of 0.5 mm and 10 columns of 1 mm: a square of 10 mm
    spec = dataclasses.replace(
        AS_IS, size=(28, 28), resize_mode="shorter", crop_fraction=0.875, reading=Reading(spacing=1.0)
    )
    seen = decode_image(dicom(values, PixelSpacing=[0.5, 1.0]), spec)[..., 0]
    assert seen.shape == (28, 28)
    np.testing.assert_allclose(seen.sum() / 255, 100, rtol=0.02)
    rows, columns = np.flatnonzero(seen.max(1) > 127), np.flatnonzero(seen.max(0) > 127)
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (9, 18)
    # an image smaller than the input lies in its middle, on black
    small = decode_image(dicom(np.array([[0, 9], [9, 9]], np.uint16), PixelSpacing=[4, 4]), spec)[..., 0]
    assert small[:10].max() == small[18:].max() == small[:, :10].max() == small[:, 18:].max() == 0
    with pytest.raises(ImageError, match="no pixel spacing"):
        decode_image(dicom(values), spec)
    with pytest.raises(ImageError, match="no pixel spacing"):
        decode_image(png(Image.new("L", (8, 8))), spec)


# what is refused


def test_sizes_are_looked_at_before_anything_is_decoded():
    for tags, reason in (
        ({"Rows": 60000, "Columns": 60000}, "60000x60000 pixels; at least one and at most 40000000 are read"),
        ({"Rows": 0}, "8x0 pixels"),
        ({"NumberOfFrames": 1000}, "truncated: 128 bytes of pixels, where the header declares 128000"),
        ({"SamplesPerPixel": 5}, "5 samples a pixel of 16 bits"),
        ({"PixelData": None}, "it has no pixel data"),
    ):
        with pytest.raises(ImageError, match=reason):
            read(dicom(RAMP, **tags))


def test_a_frame_that_is_larger_than_its_header_says_is_not_decoded():
    for name, mark, at in (
        ("JPEGLSNearLossless_08.dcm", b"\xff\xf7", 5),
        ("SC_rgb_small_odd_jpeg.dcm", b"\xff\xc0", 5),
        ("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", 8),
    ):
        data = bytearray(next(path for path in files_of_pydicom() if path.name == name).read_bytes())
        place = data.index(mark) + at
        data[place : place + 2] = b"\x7f\xff"
        with pytest.raises(ImageError, match=r"its compressed frame has .* pixels of|is not sound"):
            read(bytes(data))


def test_a_deflated_bomb_is_not_unpacked():
    small = dicom(RAMP, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert read(small).shape == (8, 8)
    start = small.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    end = 132 + 12 + int.from_bytes(small[140:144], "little")
    assert start <= end
    with pytest.raises(ImageError, match="it unpacks to more than"):
        read(small[:end] + bomb)


def test_a_segmented_palette_bomb_is_not_unpacked():
    values = np.zeros((8, 8), np.uint8)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"Segmented{colour}PaletteColorLookupTableData"] = b"\0\0\1\0\0\0" + b"\1\0\xff\xff\1\0" * 1000
    with pytest.raises(ImageError, match="its palette is not sound"):
        read(dicom(values, **tags))


def test_sequences_in_sequences_end_in_a_reason():
    data = dicom(RAMP)
    place = data.index(b"\x28\0\x02\0US")
    nested = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="damaged or unusual DICOM file"):
        read(data[:place] + 50_000 * nested + data[place:])


def test_no_text_of_the_file_is_in_a_reason_a_warning_or_a_log(recwarn, caplog):
    data = bytearray(dicom(RAMP, PatientName="Planted^Name", PatientID="PLANTED", NumberOfFrames="12345"))
    place = data.index(b"12345")
    data[place : place + 5] = b"PLANT"
    with pytest.raises(ImageError) as found:
        read(bytes(data))
    assert "PLANT" not in str(found.value).upper()
    assert found.value.__cause__ is None
    assert not [one for one in recwarn if "PLANT" in str(one.message)]
    assert "PLANT" not in caplog.text


def test_a_missing_decoder_is_named_with_its_extra(tmp_path):
    """In a process of its own, from which the packages are hidden."""
    path = next(path for path in files_of_pydicom() if path.name == "MR_small_jpeg_ls_lossless.dcm")
    code = """
        import sys
        for name in ({hidden}):
            sys.modules[name] = None
        from resfit.data.decode import decode_image
        from resfit.preprocessing import InputSpec
        try:
            decode_image(sys.argv[1], InputSpec(size=(8, 8)))
        except Exception as error:
            print(type(error).__name__, error)
    """
    for hidden, wanted in (
        (
            '"pylibjpeg", "libjpeg", "openjpeg"',
            "ImageError JPEG-LS Lossless Image Compression needs a decoder that is not installed. Install it: pip "
            'install "resfit[medical]" (requires pylibjpeg>=2.0 and pylibjpeg-libjpeg>=2.1)',
        ),
        (
            '"pydicom",',
            "MissingDependencyError DICOM files need pydicom, which is not installed. Install it: pip install "
            '"resfit[medical]".',
        ),
    ):
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code).format(hidden=hidden), str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == wanted


def test_deep_files_are_told_by_their_headers(tmp_path):
    for name, data, deep in (
        ("a.dcm", dicom(RAMP), True),
        ("a.png", png(Image.fromarray(RAMP)), True),
        ("b.png", png(Image.new("RGB", (4, 4))), False),
    ):
        (tmp_path / name).write_bytes(data)
        assert is_deep(tmp_path / name) is deep
        assert (decode_image(tmp_path / name, AS_IS).dtype == np.float32) is deep


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "choices",
    [{"frame": -1}, {"frame": "first"}, {"window": (1.0, 0.0)}, {"plane": "x"}, {"spacing": 0.0}, {"series": "a"}],
)
def test_a_reading_checks_its_choices(choices):
    with pytest.raises(ArgumentError, match=f"{next(iter(choices))} must be"):
        Reading(**choices)


def test_a_reading_travels_with_the_contract():
    spec = dataclasses.replace(AS_IS, reading=Reading(frame=3, window=(40.0, 400.0), spacing=0.5))
    assert spec.to_dict()["reading"] == {"frame": 3, "window": [40.0, 400.0], "spacing": 0.5}
    assert InputSpec.from_dict(spec.to_dict()) == spec
    assert "reading" not in AS_IS.to_dict()
    with pytest.raises(ArgumentError, match="unknown fields: size"):
        InputSpec.from_dict({"reading": {"size": 3}})


# elements that are missing, empty or odd

SHORT = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
COLOURS = np.random.default_rng(5).integers(0, 256, (8, 9, 3), dtype=np.uint8)
SLOPE, WIDTH = "Rescale Slope (0028,1053)", "Window Width (0028,1051)"


def shown(values, window=0, **tags) -> np.ndarray:
    """What is shown of a file, and that of one which says everything must be the same."""
    return decode_image(dicom(values, **tags), dataclasses.replace(AS_IS, reading=Reading(window=window)))


@pytest.mark.parametrize("absent", [None, ""])
@pytest.mark.parametrize(
    ("values", "name", "stated", "note"),
    [
        (SHORT, "BitsStored", {"BitsStored": 16}, "Bits Stored (0028,0101)"),
        (SHORT, "HighBit", {}, ""),
        (SHORT, "PixelRepresentation", {"PixelRepresentation": 0}, "Pixel Representation (0028,0103)"),
        (SHORT, "BitsAllocated", {"BitsAllocated": 16}, "Bits Allocated (0028,0100)"),
        (SHORT[:7, :7].astype(np.uint8), "BitsAllocated", {"BitsAllocated": 8}, "Bits Allocated (0028,0100)"),
        (SHORT, "SamplesPerPixel", {"SamplesPerPixel": 1}, "Samples per Pixel (0028,0002)"),
        (COLOURS, "SamplesPerPixel", {"SamplesPerPixel": 3}, "Samples per Pixel (0028,0002)"),
        (COLOURS, "PlanarConfiguration", {"PlanarConfiguration": 0}, "Planar Configuration (0028,0006)"),
        (COLOURS, "BitsStored", {"BitsStored": 8}, "Bits Stored (0028,0101)"),
        (SHORT, "NumberOfFrames", {"NumberOfFrames": 1}, ""),
    ],
)
def test_what_says_how_pixels_are_stored_is_filled_in_and_told(values, name, stated, note, absent):
    given = {"NumberOfFrames": 1} if name == "NumberOfFrames" else {}
    wanted = shown(values, **{**given, **stated})
    assert wanted.max() > wanted.min()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = shown(values, **{**given, name: absent} if absent == "" or name in dicom_names(values) else given)
    np.testing.assert_array_equal(found, wanted)
    told = [str(one.message) for one in caught if issubclass(one.category, UserWarning) and "taken" in str(one.message)]
    assert [text.startswith(note) for text in told] == ([True] if note else [])


def dicom_names(values) -> set[str]:
    """Elements that every synthetic file has."""
    colour = {"PlanarConfiguration"} if values.ndim == 3 else set()
    return {"BitsStored", "HighBit", "PixelRepresentation", "BitsAllocated", "SamplesPerPixel"} | colour


@pytest.mark.parametrize(
    ("given", "stated", "note"),
    [
        ({"RescaleIntercept": -10}, {"RescaleSlope": 1, "RescaleIntercept": -10}, SLOPE),
        ({"RescaleIntercept": -10, "RescaleSlope": ""}, {"RescaleSlope": 1, "RescaleIntercept": -10}, SLOPE),
        ({"RescaleSlope": 2}, {"RescaleSlope": 2, "RescaleIntercept": 0}, "Rescale Intercept (0028,1052)"),
        ({"RescaleSlope": 2, "RescaleIntercept": ""}, {"RescaleSlope": 2, "RescaleIntercept": 0}, "Rescale Intercept"),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, {"RescaleSlope": 1, "RescaleIntercept": 0}, ""),
    ],
)
def test_rescaling_of_which_a_half_is_missing(given, stated, note):
    window = {"WindowCenter": 1000, "WindowWidth": 1500}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = shown(SHORT, **given, **window)
        found_chosen = shown(SHORT, window=(700.0, 900.0), **given)
    np.testing.assert_array_equal(found, shown(SHORT, **stated, **window))
    np.testing.assert_array_equal(found_chosen, shown(SHORT, window=(700.0, 900.0), **stated))
    told = [str(one.message) for one in caught if "taken" in str(one.message)]
    assert [text.startswith(note) for text in told] == ([True, True] if note else [])


@pytest.mark.parametrize(
    ("window", "why"),
    [
        ({"WindowCenter": 100, "WindowWidth": 0}, f"{WIDTH} is 0"),
        ({"WindowCenter": 100, "WindowWidth": ""}, f"{WIDTH} is missing or empty"),
        ({"WindowCenter": 100}, f"{WIDTH} is missing or empty"),
        ({"WindowCenter": "", "WindowWidth": 100}, "Window Center (0028,1050) is missing or empty"),
        ({"WindowCenter": [100, 200], "WindowWidth": [0, 50]}, f"{WIDTH} is 0"),
    ],
)
def test_half_a_window_is_the_full_range_and_told(window, why):
    with pytest.warns(UserWarning, match=f"full range of its values: its {re.escape(why)}. --window"):
        found = shown(SHORT, **window)
    np.testing.assert_array_equal(found, shown(SHORT))
    if isinstance(window["WindowCenter"], list):  # the other one is sound
        np.testing.assert_array_equal(shown(SHORT, window=1, **window), shown(SHORT, WindowCenter=200, WindowWidth=50))


def test_an_empty_function_of_the_window_is_the_linear_one():
    window = {"WindowCenter": 1000, "WindowWidth": 1500}
    wanted = shown(SHORT, **window, VOILUTFunction="LINEAR")
    np.testing.assert_array_equal(shown(SHORT, **window, VOILUTFunction=""), wanted)


@pytest.mark.parametrize(
    ("values", "tags", "reason"),
    [
        (SHORT, {"PhotometricInterpretation": ""}, "its Photometric Interpretation (0028,0004) is missing or empty"),
        (
            COLOURS,
            {"PhotometricInterpretation": None},
            "its Photometric Interpretation (0028,0004) is missing or empty",
        ),
        (SHORT, {"Rows": ""}, "its Rows (0028,0010) is missing or empty"),
        (SHORT, {"Columns": None}, "its Columns (0028,0011) is missing or empty"),
        (SHORT, {"BitsStored": 0}, "its Bits Stored (0028,0101) is 0, where Bits Allocated (0028,0100) is 16"),
        (SHORT, {"BitsStored": 17}, "its Bits Stored (0028,0101) is 17, where Bits Allocated (0028,0100) is 16"),
        (SHORT, {"RescaleSlope": 0, "RescaleIntercept": 3}, f"its {SLOPE} is 0, which makes all values the same"),
        (SHORT, {"RescaleSlope": [1, 2], "RescaleIntercept": 3}, f"damaged: its {SLOPE} is not a number"),
        (SHORT, {"WindowCenter": 9, "WindowWidth": -9}, f"its {WIDTH} is negative"),
        (SHORT, {"WindowCenter": 9, "WindowWidth": 0.5}, f"its {WIDTH} is below 1"),
        (SHORT, {"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "VOI LUT Function (0028,1056)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_one_reading_is_refused_by_the_name_of_its_element(values, tags, reason):
    with pytest.raises(ImageError) as found:
        shown(values, **tags)
    assert reason in str(found.value)
    assert "Error" not in str(found.value)


def test_a_number_that_is_none_is_named():
    data = bytearray(dicom(SHORT, RescaleSlope="1234.5", RescaleIntercept=0))
    place = data.index(b"1234.5")
    data[place : place + 6] = b"PLANT "
    with pytest.raises(ImageError, match=re.escape(f"damaged: its {SLOPE} is not a number")):
        read(bytes(data))
