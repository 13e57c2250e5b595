"""Each image is decoded once, whatever a fit needs of it: features, pixels, records, thumbnails."""

from __future__ import annotations

import collections
import io

import numpy as np
import pytest
from PIL import Image

from resfit.data import decode
from resfit.data.dataset import scan
from resfit.data.thumbnails import of_decoded, thumbnails
from resfit.evaluation.reference_images import References
from resfit.features import extract as feature_store
from resfit.features import pixels as storage
from resfit.tasks.classification import fit
from tests.pictures import write_folder
from tests.training.networks import small_body

QUICK = {"epochs": 2, "batch_size": 8, "precision": "float32"}
OPTIONS = {
    "probe": {"strategy": "probe"},
    "auto, all of it": {"strategy": "auto", "budget": "5m", "tuning": {**QUICK, "trainable_from": 0.0}},
    "auto, the last stage": {"strategy": "auto", "budget": "5m", "tuning": {**QUICK, "trainable_from": 0.9}},
    "finetune": {"strategy": "finetune", "tuning": {**QUICK, "trainable_from": 0.9, "views": 3}},
    "full": {"strategy": "full", "tuning": QUICK},
}
#: Where the frozen part is another network, or has views of its own, an image is decoded for them once more.
TWICE = {"auto, the last stage"}


@pytest.fixture(scope="module")
def body():
    return small_body()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = write_folder(tmp_path_factory.mktemp("once") / "images", each=12)
    (found / "red" / "broken.png").write_bytes(b"nothing")
    return found


@pytest.fixture
def decodings(monkeypatch):
    counts = collections.Counter()
    original = decode._decode

    def counting(data, *arguments, **options):
        counts[data] += 1
        return original(data, *arguments, **options)

    monkeypatch.setattr(decode, "_decode", counting)
    return counts


@pytest.mark.parametrize("case", list(OPTIONS))
def test_a_fit_decodes_each_image_once(body, folder, tmp_path, decodings, case):
    out = tmp_path / "out.resfit"
    fitted = fit(folder, model=body, cache=tmp_path / "cache", out=out, tensorboard=False, **OPTIONS[case])
    files = [path for path in sorted(folder.rglob("*.png")) if path.stem != "broken"]
    assert set(decodings) == {path.read_bytes() for path in folder.rglob("*.png")}
    assert max(decodings.values()) == (2 if case in TWICE else 1)
    assert fitted.metrics["images"]["found"] == len(files) + 1
    kept = References.from_bytes((out / "references.npz").read_bytes())
    assert len(kept.thumbnails) > len(files) / 2
    assert set(kept.thumbnails) <= set(thumbnails(files))


def test_features_come_of_decoded_pixels(body, folder, tmp_path, decodings):
    images = scan(folder)
    expected = feature_store.extract(body, images, records=True, cache=tmp_path / "one")
    pixels = storage.decoded(images.paths, body.input_spec, tmp_path / "two", records=True)
    decodings.clear()
    found = feature_store.extract(body, images, records=True, cache=tmp_path / "two", pixels=pixels)
    assert not decodings
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.records, expected.records)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert (found.digests, found.skipped, found.computed) == (expected.digests, expected.skipped, expected.computed)
    again = feature_store.extract(body, images, cache=tmp_path / "two")
    assert (again.computed, again.reused) == (0, expected.computed)
    np.testing.assert_array_equal(again.rows, expected.rows)


def test_a_thumbnail_needs_an_image_that_is_large_enough():
    header = decode.ImageHeader("JPEG", 400, 300, 0, 0, 0, 0)
    large = Image.effect_noise((200, 150), 40).convert("RGB")
    with Image.open(io.BytesIO(of_decoded(header, large))) as found:
        assert found.size == (96, 72)
        expected = np.asarray(large.resize((96, 72), Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(found, float) - expected).mean() < 12
    assert of_decoded(header, large.resize((80, 60))) == b""
    small = decode.ImageHeader("PNG", 80, 60, 0, 0, 0, 0)
    with Image.open(io.BytesIO(of_decoded(small, large.resize((80, 60))))) as found:
        assert found.size == (80, 60)
