"""Which places learn which box."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.data.box_views import plain_placement
from resfit.networks import catalog
from resfit.tasks.detection import feeds
from resfit.tasks.detection.network import detector_spec
from resfit.tasks.detection.postprocess import suppress
from resfit.tasks.detection.targets import BACKGROUND, IGNORED, Places, assign

NONE = np.zeros((0, 4), np.float32)


@pytest.fixture(scope="module")
def places():
    return Places.of(detector_spec(catalog.get("resnet10_tiny").spec, 3, (128, 128)), (128, 128))


def test_places_are_the_middles_of_cells(places):
    assert places.counts == (256, 64, 16, 4)
    assert places.centres[:2].tolist() == [[4, 4], [12, 4]]
    assert places.centres[256].tolist() == [8, 8]
    assert (places.anchors[256] == [8 - 64, 8 - 64, 8 + 64, 8 + 64]).all()


def test_a_box_is_learned_inside_it_and_at_its_scale(places):
    box = np.array([[32, 32, 96, 96]], np.float32)  # 64 pixels, the square of stride 8
    rows = assign(places, box, NONE)
    mine = np.flatnonzero(rows == 0)
    assert 5 <= len(mine) <= 9
    assert mine.max() < 256  # level of stride 8 alone
    assert (np.abs(places.centres[mine] - 64) <= 12).all()
    assert set(rows.tolist()) == {0, BACKGROUND}


@pytest.mark.parametrize("box", [[61, 61, 64, 63], [0, 0, 128, 128], [0, 60, 128, 62], [126, 126, 128, 128]])
def test_every_box_has_a_place_however_small_or_large(places, box):
    assert (assign(places, np.array([box], np.float32), NONE) == 0).any()


def test_of_two_boxes_each_keeps_a_place(places):
    boxes = np.array([[40, 40, 80, 80], [41, 41, 79, 79], [40, 40, 80, 80]], np.float32)
    rows = assign(places, boxes, NONE)
    assert {0, 1, 2} <= set(rows.tolist())


def test_nothing_is_learned_in_regions_to_ignore_but_of_boxes_in_them(places):
    rows = assign(places, np.array([[40, 40, 80, 80]], np.float32), np.array([[0, 0, 128, 64]], np.float32))
    inside = places.centres[:, 1] <= 64
    assert (rows[~inside] != IGNORED).all()
    assert set(rows[inside].tolist()) == {IGNORED, 0}
    assert (assign(places, NONE, NONE) == BACKGROUND).all()


@pytest.mark.parametrize("seed", range(4))
def test_suppression_in_numpy_is_that_of_the_graph(seed):
    from resfit.networks.detection.nms import NonMaxSuppression

    random = np.random.default_rng(seed)
    counts = (300, 100)
    corner = random.uniform(0, 60, (400, 2))
    boxes = np.concatenate([corner, corner + random.uniform(2, 30, (400, 2))], axis=1).astype(np.float32)
    scores = np.round(random.uniform(0, 1, (400, 3)) ** 3, 2).astype(np.float32)  # ties
    layer = NonMaxSuppression(0.05, 0.6, candidates=80, max_detections=50)
    maps = [np.zeros((1, 30, 10, 1), np.float32), np.zeros((1, 10, 10, 1), np.float32)]
    expected = {
        k: np.asarray(v)[0] for k, v in layer({"boxes": boxes[None], "scores": scores[None], "maps": maps}).items()
    }
    found = suppress(boxes, scores, counts=counts, candidates=80, max_detections=50)
    count = int(expected["count"])
    assert len(found[0]) == count
    assert np.array_equal(found[0], expected["boxes"][:count])
    assert np.array_equal(found[1], expected["scores"][:count])
    assert np.array_equal(found[2], expected["classes"][:count])
    assert np.array_equal(boxes[found[3]], found[0])


def test_large_targets_on_disk_are_those_in_memory(places, monkeypatch, tmp_path):
    random = np.random.default_rng(3)
    corners = random.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 60, (40, 2))], axis=1).astype(np.float32)
    shares = np.split(boxes, [0, 9, 10, 30])  # the first picture has no boxes
    pictures = feeds.LabelledPictures(
        paths=(tmp_path,) * 5,
        sizes=np.full((5, 2), 128),
        boxes=tuple(shares),
        labels=tuple(np.arange(len(some)) % 3 for some in shares),
        crowd=tuple(np.zeros(len(some), bool) for some in shares),
        digests=(b"",) * 5,
    )
    made = {}
    for limit in (0, 2**25):
        monkeypatch.setattr(feeds, "_IN_MEMORY", limit)
        made[limit] = feeds.ViewTargets.of(
            pictures, places, lambda _: plain_placement((128, 128), (128, 128)), pictures.most, folder=tmp_path
        )
    assert isinstance(made[0].rows, np.memmap)
    assert not isinstance(made[2**25].rows, np.memmap)
    for name in ("rows", "boxes", "labels"):
        np.testing.assert_array_equal(getattr(made[0], name), getattr(made[2**25], name))
    assert (made[0].rows >= 0).any(axis=1).tolist() == [False, True, True, True, True]
    np.testing.assert_array_equal(made[0].boxes[1, :9], shares[1])
    assert not list(tmp_path.iterdir())
