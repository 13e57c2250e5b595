"""Images of more than eight bits: every bit of them, whatever way they are stored."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from resfit.data import high_bit_depth
from resfit.data.decode import decode_image
from resfit.errors import ImageError
from resfit.preprocessing import InputSpec

AS_IS = InputSpec(resize_mode="none")
# 16 bits a colour, 6x5 pixels, as tifffile writes them
TIFFS = {
    "lzw, differences, big-endian, tiles": (
        "TU0AKgAAAAgADwEAAAQAAAABAAAABQEBAAQAAAABAAAABgECAAMAAAADAAAAwgEDAAMAAAABAAUAAAEGAAMAAAABAAIAAAEVAAMAAAAB"
        "AAMAAAEaAAUAAAABAAAAyAEbAAUAAAABAAAA0AEcAAMAAAABAAEAAAEoAAMAAAABAAEAAAE9AAMAAAABAAIAAAFCAAQAAAABAAAAEAFD"
        "AAQAAAABAAAAEAFEAAQAAAABAAAA4AFFAAQAAAABAAAArgAAAAAAEAAQABAAAAABAAAAAQAAAAEAAAABAAAAAAAAAACAAAAJ4bjw3NpS"
        "wiFQmGQuHQxKmx7jUsP6BReMRmNRuOR2PRoijlxnBAqeHyeGymEFAZrF+BNix+ZTOaR5FHIUKljOCUT2VKUFPo2MNnIya0ekTJnqs2uI"
        "GBmfVGGMVgidFIkp0mtVuLhRyLMNlEpVKpIBEOIokQNVy2UgtB18FRLIuyT+Fjsnp0MP5w22/X/AYHBYPCYXDYfEYnFYvGY3HY/IZHJZ"
        "PKZXLZfLQEA="
    ),
    "deflate, differences": (
        "SUkqAAgAAAAOAAABBAABAAAABQAAAAEBBAABAAAABgAAAAIBAwADAAAAtgAAAAMBAwABAAAAsoAAAAYBAwABAAAAAgAAABEBBAABAAAA"
        "0AAAABUBAwABAAAAAwAAABYBBAABAAAABgAAABcBBAABAAAAPAAAABoBBQABAAAAvAAAABsBBQABAAAAxAAAABwBAwABAAAAAQAAACgB"
        "AwABAAAAAQAAAD0BAwABAAAAAgAAAAAAAAAQABAAEAABAAAAAQAAAAEAAAABAAAAAAAAAHicY2Awn5dns/QWdmjpWvB4eSMu2aKulRoP"
        "juGSXX3+Ua4kDy7ZJyLSm4MCccnKRoX86J6GSxYA+ql73w=="
    ),
    "lzw": (
        "SUkqAAgAAAANAAABBAABAAAABQAAAAEBBAABAAAABgAAAAIBAwADAAAAqgAAAAMBAwABAAAABQAAAAYBAwABAAAAAgAAABEBBAABAAAA"
        "wAAAABUBAwABAAAAAwAAABYBBAABAAAABgAAABcBBAABAAAAzQAAABoBBQABAAAAsAAAABsBBQABAAAAuAAAABwBAwABAAAAAQAAACgB"
        "AwABAAAAAQAAAAAAAAAQABAAEAABAAAAAQAAAAEAAAABAAAAgAAAA3TxuHilbTcPATC5KWqBKa4eLvR4mFxdZiUNTLBACU45IpwcanQL"
        "eD4VXxMLiDfS6TDxGwoapfOaWCLNV4EJw7dhyRSpFDgYwXMpOAaFUK8H7zboqPhhDSYXDPKwGeo9SZ0GKrZ7iNoZBhQVSHJC+cz1QgsE"
        "ZjYKaL7RfoITg/HR2bCtOzkCgbWZSKKJd7ARr3FYuZRlNCcAzTUgKIZBcJ4P6vDrmXYdLRUfCLSzCGj5aQwOJnB6eVrVJYMdRDRB6Eyx"
        "YjoMQfAMBA=="
    ),
    "deflate, big-endian": (
        "TU0AKgAAAAgADQEAAAQAAAABAAAABQEBAAQAAAABAAAABgECAAMAAAADAAAAqgEDAAMAAAABgLIAAAEGAAMAAAABAAIAAAERAAQAAAAB"
        "AAAAwAEVAAMAAAABAAMAAAEWAAQAAAABAAAABgEXAAQAAAABAAAAvwEaAAUAAAABAAAAsAEbAAUAAAABAAAAuAEcAAMAAAABAAEAAAEo"
        "AAMAAAABAAEAAAAAAAAAEAAQABAAAAABAAAAAQAAAAEAAAABeJwBtABL/wAAnjc8btqleNwXE7VKU4HxuI/vLibMXWqUCMunAkU543CB"
        "px/evhVcTPqDmLo28dUoc18Rlq/NTgTsO4pyKKnG4GUXA06hhT+83fN8KhphuJhWz/UGkz0xdM+rbeIMGapQSIfmvoT1IyzBY1+a/dGc"
        "CDo/2HZ2rRTksxtRUu+JjcAr98ouaGUGnKTTQwrhQX94Ha+75lod+FSWizTC0vlxMA9nrZ5L1eoMiEMmesSxYugBH4h9V3s="
    ),
}
PLANES = (
    "SUkqAAgAAAANAAABBAABAAAABQAAAAEBBAABAAAABgAAAAIBAwADAAAAqgAAAAMBAwABAAAAsoAAAAYBAwABAAAAAgAAABEBBAADAAAAsAAA"
    "ABUBAwABAAAAAwAAABYBBAABAAAABgAAABcBAwADAAAAvAAAABoBBQABAAAAwgAAABsBBQABAAAAygAAABwBAwABAAAAAgAAACgBAwABAAAA"
    "AQAAAAAAAAAQABAAEADgAAAAJwEAAG4BAABHAEcARwABAAAAAQAAAAEAAAABAAAAAAAAAAAAAAAAAAAAAAB4nGNgWHrLa+v7/ilZlq735Jt/"
    "aVw9u76oSzx1j32iFNvX1ecDVn1tmRVvb/VEpPO93qnLSyrqZaMOmaTz87zaeAQAibkd2HicM593p6IxWE3vNEfBY9F9u2bEF7P4rdTwY/58"
    "d8YO28mPcts9dJQv/i27Ib35QG9qBpfzetmQHz8vzVvr3PEiCQBgxR3UeJzLsxEW3/Ex9gzT8uWNPjEfzaYJWr95cKx1oVbN+bASQ0mefc+S"
    "D3LMWVsWFPhdew6b48Nnu7unGRRe9a5Sk2cEAF7WG9E="
)
COLOURS = (np.arange(90) * 40503 % 65536).reshape(6, 5, 3)


@pytest.mark.parametrize("name", list(TIFFS))
def test_packed_colours_of_a_tiff_keep_their_depth(name):
    seen = decode_image(base64.b64decode(TIFFS[name]), AS_IS)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, COLOURS / 257, rtol=1e-6)


def test_separate_planes_are_refused_and_not_misread():
    with pytest.raises(ImageError, match="more than 8 bits a colour, one colour plane after the other"):
        decode_image(base64.b64decode(PLANES), AS_IS)


def test_what_is_clear_is_white():
    values = np.zeros((1, 2, 4), np.uint16)
    values[0, 0] = (65535, 0, 257, 65535)
    seen = high_bit_depth.of_colour(values)
    assert [plane[0].tolist() for plane in seen.planes] == [[255, 255], [0, 255], [1, 255]]


def test_resizing_keeps_fractions_and_stays_in_range():
    values = np.random.default_rng(0).choice([0, 65535], (9, 9)).astype(np.uint16)
    spec = InputSpec(size=(24, 24), interpolation="lanczos", resize_mode="squash")
    (seen,) = high_bit_depth.rendered(high_bit_depth.of_grey(values), spec, [lambda plane: plane.resize((24, 24), 1)])
    assert (seen.min(), seen.max()) == (0, 255)  # Lanczos overshoots on both sides
    assert len(np.unique(seen)) > 300
    np.testing.assert_array_equal(seen[..., 0], seen[..., 2])


def test_too_many_pixels_are_refused_by_the_header():
    with pytest.raises(ImageError, match="8000x6000 pixels; at least one and at most 40000000 are read"):
        high_bit_depth.check_pixels(8000, 6000)


def test_eight_bits_are_rounded_for_the_eye():
    assert high_bit_depth.eight_bits(np.array([-1.0, 0.4, 0.6, 254.7, 300.0])).tolist() == [0, 0, 1, 255, 255]
    same = np.zeros((2, 2, 3), np.uint8)
    assert high_bit_depth.eight_bits(same) is same
