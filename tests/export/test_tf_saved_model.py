"""The SavedModel for TensorFlow Serving: layout, signatures, encoded images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resfit import export as exports
from resfit.data import decode
from tests.export import elsewhere, networks


@pytest.fixture(scope="module")
def served(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "out"
    return exports.export(network("se"), out, name="tulips", version=7, images=networks.shipped(64)[:24])


def test_layout_and_signatures(network, served):
    import tensorflow as tf

    assert (served.folder / "tulips" / "7" / "saved_model.pb").is_file()
    loaded = tf.saved_model.load(str(served.folder / "tulips" / "7"))
    assert set(loaded.signatures) == {"serving_default", "serving_bytes", "features", "decode"}
    contract = elsewhere.contract_of(served.folder)
    for name, described in contract["signatures"].items():
        signature = loaded.signatures[name]
        assert list(signature.structured_input_signature[1]) == described["inputs"]
        assert sorted(signature.structured_outputs) == sorted(described["outputs"])
    model = network("se")
    images = networks.shipped(64)[:5].astype(np.float32)
    answer = loaded.signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(answer["scores"], model(images, training=False), atol=1e-5)
    assert answer["classes"].shape == (5, 5)
    assert [text.decode() for text in answer["classes"][4].numpy()] == list(model.class_names)
    assert len(served.verification.checks) == 5
    assert {check.what for check in served.verification.checks} == {
        "the pixels of a photo, averaged", "the scores of a photo",
        "features", "decoded images", "scores of encoded images",
    }  # fmt: skip


def test_encoded_images_of_every_size_in_one_batch(network, served):
    import tensorflow as tf

    model = network("se")
    files = []
    for number, (size, format) in enumerate([((80, 50), "PNG"), ((300, 200), "JPEG"), ((64, 64), "JPEG")]):
        data = io.BytesIO()
        Image.fromarray(networks.shipped(96)[number]).resize(size).save(data, format)
        files.append(data.getvalue())
    loaded = tf.saved_model.load(str(served.folder / "tulips" / "7"))
    scores = loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))["scores"]
    pixels = np.stack([decode.decode_image(data, model.input_spec) for data in files])
    expected = np.asarray(model(pixels.astype(np.float32), training=False))
    np.testing.assert_allclose(scores, expected, atol=0.02)  # a level of 255 in some pixels
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["serving_bytes"](image_bytes=tf.constant([b"no image"]))


def test_weights_are_folded_and_written_once(network, served):
    variables = served.folder / "tulips" / "7" / "variables"
    size = sum(path.stat().st_size for path in variables.glob("*.data-*"))
    model = network("se")
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    assert norms
    parameters = model.count_params() - sum(layer.count_params() for layer in norms)
    biases = sum(int(layer.gamma.shape[0]) for layer in norms)
    assert 4 * (parameters + biases) <= size < 4 * (parameters + biases) + 60_000
