"""Images in every form that callers hand them over in: the same picture gives the same network input, or a refusal."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from resfit.data import arrays, inputs
from resfit.data.decode import decode_image, decode_many
from resfit.errors import ArgumentError, DataError, ImageError, InputWarning
from resfit.preprocessing import InputSpec

SPEC = InputSpec(size=(16, 16), crop_fraction=0.875)
GREY = InputSpec(size=(16, 16), channels=1, mean=(0.0,), std=(1.0,))
COLOUR = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
PLANE = COLOUR[..., 1]


def png(image, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG", **options)
    return file.getvalue()


def read(images, spec=SPEC):
    """Returns the network's input of images, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sources = inputs.listed(images, spec)
        found = [batch.images for batch in inputs.batches(sources, spec, 64)]
        assert not any(batch.failures for batch in inputs.batches(sources, spec, 64))
    return np.concatenate(found), [str(one.message) for one in caught if one.category is InputWarning]


class Tensor:
    """What libraries of tensors hand over."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


EXACT = {
    "uint8": COLOUR,
    "one in a batch": COLOUR[None],
    "int64": COLOUR.astype(np.int64),
    "float16": COLOUR.astype(np.float16),
    "float64": COLOUR.astype(np.float64),
    "big-endian": COLOUR.astype(">f4"),
    "reversed and reversed again": np.ascontiguousarray(COLOUR[::-1])[::-1],
    "opaque": np.dstack([COLOUR, np.full_like(PLANE, 255)]),
    "nested lists": COLOUR.tolist(),
    "tensor": Tensor(COLOUR),
    "bytes": png(COLOUR),
    "bytearray": bytearray(png(COLOUR)),
    "memoryview": memoryview(png(COLOUR)),
    "PIL image": Image.fromarray(COLOUR),
    "list": [COLOUR],
    "a batch of one in a list": [COLOUR[None]],
}


@pytest.mark.parametrize("form", EXACT)
def test_every_form_of_a_picture_is_what_its_file_is(form):
    expected = decode_image(png(COLOUR), SPEC)
    found, said = read(EXACT[form])
    np.testing.assert_array_equal(found, expected[None])
    assert not said


def test_open_files_and_lazy_images_are_read_as_files_and_left_where_they_are():
    jpeg = io.BytesIO()
    Image.fromarray(COLOUR).resize((800, 600)).save(jpeg, "JPEG")
    expected = decode_image(jpeg.getvalue(), SPEC)
    jpeg.seek(0)
    lazy = Image.open(jpeg)
    at = jpeg.tell()
    np.testing.assert_array_equal(read([lazy, lazy])[0], np.stack([expected] * 2))  # at a fraction of its size, too
    assert jpeg.tell() == at
    assert lazy.size == (800, 600)
    np.testing.assert_array_equal(read(jpeg)[0][0], expected)
    assert np.abs(read(np.asarray(lazy))[0][0].astype(int) - expected).mean() < 2


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa"]
)
def test_pil_images_of_every_mode(mode, lazy):
    alpha = Image.fromarray(np.dstack([COLOUR, PLANE]))
    by_way = {"PA": "P", "La": "LA", "RGBa": "RGBA", "LA": "LA"}
    image = (alpha if mode in ("RGBA", "LA", "La", "RGBa", "PA") else alpha.convert("RGB")).convert(
        by_way.get(mode, mode)
    )
    image = image.convert(mode)
    found, said = read(image)
    if mode in ("La", "RGBa"):  # no file has premultiplied colours: those that they stand for
        image = image.convert(by_way[mode])
    shown = image if mode in ("RGBA", "LA") or image.mode in ("RGBA", "LA") else image.convert("RGB")
    if mode == "PA":
        shown = image.convert("RGBA")
    data = png(shown)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(data)) if lazy else data)[0], found)
    assert not said


def test_grey_is_repeated_and_colour_made_grey_as_files_are():
    expected = decode_image(png(PLANE), SPEC)
    for form in (PLANE, PLANE[..., None], PLANE[None], np.stack([PLANE, PLANE])[:1], [PLANE]):
        np.testing.assert_array_equal(read(form)[0], expected[None])
    np.testing.assert_array_equal(read(np.stack([PLANE] * 5))[0], np.stack([expected] * 5))
    for form, data in ((PLANE, png(PLANE)), (COLOUR, png(COLOUR)), (np.dstack([COLOUR, PLANE]),) * 2):
        data = data if isinstance(data, bytes) else png(data)
        np.testing.assert_array_equal(read(form, GREY)[0][0], decode_image(data, GREY))


def test_truth_values_are_those_of_a_file_of_one_bit():
    mask = PLANE > 100
    np.testing.assert_array_equal(read(mask)[0][0], decode_image(png(mask), SPEC))


def test_alpha_is_laid_over_white_as_files_are():
    for form in (np.dstack([COLOUR, PLANE]), np.dstack([PLANE, COLOUR[..., 2]])):
        np.testing.assert_array_equal(read(form)[0][0], decode_image(png(form), SPEC))
    deep = read(np.dstack([COLOUR, PLANE]).astype(np.uint16) * 257)[0][0]
    assert np.abs(deep - decode_image(png(np.dstack([COLOUR, PLANE])), SPEC)).max() < 1.5


@pytest.mark.parametrize("shape", ["chw", "nchw", "in a list", "rgba first"])
def test_channels_first_is_recognised_and_said(shape):
    first = np.moveaxis(COLOUR, -1, 0)
    rgba = np.concatenate([first, np.full((1, 40, 52), 255, np.uint8)])
    form = {"chw": first, "nchw": np.stack([first] * 5)[:1], "in a list": [first], "rgba first": rgba[None]}[shape]
    found, said = read(form)
    np.testing.assert_array_equal(found[0], decode_image(png(COLOUR), SPEC))
    assert len(said) == 1
    assert "(height, width, channels)" in said[0]


def test_floats_of_0_to_1_are_scaled_and_said():
    expected = decode_image(png(COLOUR), SPEC)
    for dtype in (np.float32, np.float64):
        found, said = read((COLOUR / 255).astype(dtype))
        np.testing.assert_array_equal(found[0], expected)
        assert len(said) == 1
        assert "multiplied by 255" in said[0]
    half, _ = read((COLOUR / 255).astype(np.float16))
    assert np.abs(half[0] - expected.astype(float)).max() < 1.5
    # one dark image of a batch does not change how the others, or it, are read
    batch = np.stack([COLOUR, COLOUR // 255]).astype(np.float32)
    assert not read(batch)[1]
    np.testing.assert_array_equal(read(batch)[0][1], read(COLOUR // 255)[0][0])
    assert "nearly black" in read(COLOUR / 127.5)[1][0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64])
def test_sixteen_bits_are_scaled_as_files_are_and_said(dtype):
    deep = np.random.default_rng(1).integers(0, 65536, (40, 52))
    found, said = read(deep.astype(dtype))
    np.testing.assert_array_equal(found[0], decode_image(png(deep.astype(np.uint16)), SPEC))
    assert len(said) == 1
    assert "divided by 257" in said[0]


def test_pil_images_of_32_bits_are_read_as_their_numbers():
    expected = decode_image(png(PLANE), SPEC).astype(float)
    np.testing.assert_array_equal(read(Image.fromarray(PLANE.astype(np.int32)))[0][0], expected)
    np.testing.assert_array_equal(read(Image.fromarray(PLANE.astype(np.float32)))[0][0], expected)
    found, said = read(Image.fromarray((PLANE / 255).astype(np.float32)))
    np.testing.assert_array_equal(found[0], expected)
    assert "multiplied by 255" in said[0]
    with pytest.raises(ArgumentError, match="finite"):
        read(Image.fromarray(np.full((9, 9), np.nan, np.float32)))


REFUSED = {
    "NaN": (np.where(COLOUR == 3, np.nan, COLOUR), "finite"),
    "infinite": (np.full((9, 9, 3), np.inf), "finite"),
    "infinite as float16": (np.full((9, 9, 3), -np.inf, np.float16), "finite"),
    "one NaN in a batch": (np.stack([COLOUR, np.where(COLOUR == 3, np.nan, COLOUR)]), "finite"),
    "negative floats": (COLOUR / 127.5 - 1, "normalisation"),
    "negative integers": (COLOUR.astype(np.int16) - 100, "0\\.\\.255"),
    "above 16 bits": (COLOUR.astype(np.int64) * 1000, "0\\.\\.255"),
    "floats of 16 bits": (COLOUR * 257.0, "257"),
    "16 bits or 8": (COLOUR.astype(np.uint16), "uint8"),
    "objects": (COLOUR.astype(object), "dtype object"),
    "images in an object array": (np.array([COLOUR, COLOUR[:9]], object), "list of arrays"),
    "complex": (COLOUR.astype(np.complex64), "complex64"),
    "text": (np.full((9, 9, 3), "x"), "dtype"),
    "one axis": (np.zeros(100, np.uint8), r"shape \(100,\)"),
    "five axes": (np.zeros((1, 1, 9, 9, 3), np.uint8), "shape"),
    "nothing in it": (np.zeros((0, 9, 3), np.uint8), "shape"),
    "five channels": (np.zeros((9, 9, 5), np.uint8)[None], "shape"),
    "four grey images or RGBA first": (np.zeros((4, 40, 52), np.uint8), r"\(images, height, width\)"),
    "rows of a picture": (list(COLOUR), "image 0"),
    "a batch in a list": ([np.stack([COLOUR] * 2)], "one image each"),
    "no image": (7, "int"),
    "none": (None, "NoneType"),
    "a mapping": ({"a.png": COLOUR}, "dict"),
    "no image in a list": ([COLOUR, 7], "int at position 1"),
    "the third": ([COLOUR, COLOUR, COLOUR - 300.0], "image 2"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_image_or_may_be_two_is_refused(form):
    images, message = REFUSED[form]
    with pytest.raises(ArgumentError, match=message):
        read(images)


def test_three_planes_are_no_colours_for_a_grey_network():
    with pytest.raises(ArgumentError, match="which may be"):
        read(np.zeros((3, 40, 52), np.uint8), GREY)


def test_networks_of_six_channels_take_arrays_of_six():
    spec = InputSpec(size=(16, 16), channels=6, mean=(0.0,) * 6, std=(1.0,) * 6)
    six = np.concatenate([COLOUR, COLOUR[::-1]], axis=-1)
    found = read(six, spec)[0]
    assert found.shape == (1, 16, 16, 6)
    assert np.abs(found[0, ..., :3] - decode_image(png(COLOUR), SPEC)).max() < 1.5
    np.testing.assert_array_equal(read(np.moveaxis(six, -1, 0), spec)[0], found)
    with pytest.raises(ArgumentError):
        read(PLANE, spec)


def test_lists_may_mix_every_form_and_a_missing_file_is_a_row(tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOUR))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.png").write_bytes(png(PLANE))
    broken = png(COLOUR)[:100]
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "none.png",
        COLOUR,
        Image.fromarray(PLANE),
        broken,
        tmp_path / "folder",
    ]
    sources = inputs.listed(iter(forms), SPEC)
    assert sources.paths == [tmp_path / "a.png", tmp_path / "none.png", None, None, None, tmp_path / "folder" / "b.png"]
    (batch,) = inputs.batches(sources, SPEC, 64)
    assert batch.indices.tolist() == [0, 2, 3, 5]
    assert [position for position, _ in batch.failures] == [1, 4]
    assert batch.failures[0][1] == "no such file"
    np.testing.assert_array_equal(batch.images[0], batch.images[1])
    np.testing.assert_array_equal(batch.images[2], batch.images[3])
    column = np.array([str(tmp_path / "a.png"), str(tmp_path / "none.png")], object)
    assert inputs.listed(column, SPEC).paths == [tmp_path / "a.png", tmp_path / "none.png"]
    with pytest.raises(DataError, match="does not exist"):
        inputs.listed(tmp_path / "none.png", SPEC)
    text = [batch.failures for batch in inputs.batches(inputs.listed([io.StringIO("a")], SPEC), SPEC, 1)]
    assert "not open in binary" in text[0][0][1]


def test_nothing_is_changed_and_nothing_may_be_empty():
    given = COLOUR / 255
    before = given.copy()
    read(given)
    np.testing.assert_array_equal(given, before)
    assert len(inputs.listed([], SPEC)) == len(inputs.listed(np.zeros((0, 8, 8, 3)), SPEC)) == 0


def test_a_network_input_is_left_as_it_is():
    image = np.random.default_rng(2).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(read(inputs.NetworkInput(image))[0], image)
    # a tensor in a request of the network's size is one, but for its scale
    np.testing.assert_array_equal(inputs.fit_array(COLOUR[:16, :16], SPEC), COLOUR[:16, :16])
    with pytest.warns(InputWarning, match="multiplied by 255"):
        np.testing.assert_array_equal(inputs.fit_array(COLOUR[:16, :16] / 255, SPEC), COLOUR[:16, :16])
    with pytest.warns(InputWarning, match="channels first"):
        batch = inputs.batch_of(np.moveaxis(np.stack([COLOUR[:16, :16]] * 5), -1, 1), SPEC)
    np.testing.assert_array_equal(batch, np.stack([COLOUR[:16, :16]] * 5))
    with pytest.raises(ArgumentError, match="shape"):
        inputs.batch_of(COLOUR[None], SPEC)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def test_files_of_one_array_are_read_by_the_same_rules(tmp_path):
    expected = decode_image(png(COLOUR), SPEC)
    for form in (COLOUR, np.asfortranarray(COLOUR), COLOUR.astype(np.float32), COLOUR[None]):
        np.testing.assert_array_equal(decode_image(npy(form), SPEC), expected)
    with pytest.warns(InputWarning, match="multiplied by 255"):
        np.testing.assert_array_equal(decode_image(npy(COLOUR / 255), SPEC), expected)
    hostile = {
        "objects": npy(np.array([{}], object), allow_pickle=True),
        "cut": npy(COLOUR)[:-1],
        "NaN": npy(np.full((9, 9), np.nan)),
        "huge": b"\x93NUMPY\1\0"
        + (118).to_bytes(2, "little")
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999999, 3), }".ljust(117)
        + b"\n",
        "code": b"\x93NUMPY\1\0" + (118).to_bytes(2, "little") + b"__import__('os').abort()".ljust(117) + b"\n",
    }
    for data in hostile.values():
        with pytest.raises(ImageError):
            decode_image(data, SPEC)
    assert arrays.is_eight_bits(npy(COLOUR))
    assert not arrays.is_eight_bits(npy(COLOUR / 255))


def test_damaged_bytes_are_rows_of_their_own():
    random = np.random.default_rng(3)
    good = [png(COLOUR), npy(COLOUR)]
    damaged = []
    for _ in range(60):
        data = bytearray(good[random.integers(2)])
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(256)
        damaged.append(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sum(len(batch.indices) + len(batch.failures) for batch in decode_many(damaged, SPEC))
    assert found == 60


def test_files_of_a_folder_that_are_no_images_are_stated(tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOUR))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "readme").write_text("no image either")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    pixels, notes = read(tmp_path)
    assert len(pixels) == 1
    assert notes == [f"ignored 2 files that are no image by content, below {tmp_path}."]
