"""Every format with every family: it says what Keras says, in its own runtime, and in a process without resfit."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from resfit import export as exports
from resfit.errors import ExportError
from resfit.export import subject
from tests import torchside
from tests.export import elsewhere, networks

FAMILIES = tuple(networks.families())
FAST = ("onnx", "openvino")
SLOW = (
    *((format, "float32") for format in ("tf_saved_model", "tf_hub", "keras", "litert", "torch")),
    ("openvino", "float16"),
    ("litert", "float16"),
)
#: What timm has no network for.
FOREIGN = ("v1", "v2", "cifar")


def cases():
    for family in FAMILIES:
        for format in FAST:
            yield pytest.param(family, format, "float32", id=f"{family}-{format}-float32")
        for format, precision in SLOW:
            # one that has layers of resfit's own stands for the others
            fast = family == "cifar" and format in ("keras", "litert") and precision == "float32"
            marks = () if fast else pytest.mark.slow
            yield pytest.param(family, format, precision, id=f"{family}-{format}-{precision}", marks=marks)


@pytest.mark.parametrize(("family", "format", "precision"), cases())
def test_says_what_keras_says(network, tmp_path, family, format, precision):
    model = network(family)
    if format == "torch":
        torchside.library("timm")
    out = tmp_path / "out"
    images = networks.shipped(model.input_spec.size[0])
    if format == "torch" and family in FOREIGN:
        with pytest.raises(ExportError, match=r"timm.*Received: "):
            exports.export(model, out, format=format, images=images)
        assert not out.exists()
        return
    made = exports.export(model, out, format=format, precision=precision, images=images)
    found = made.verification
    assert found.images == 75  # the others calibrate
    assert found.agreement >= 0.99
    assert found.difference <= (1e-4 if precision == "float32" else 1e-2)
    assert 0 < made.size < 4_000_000
    contract = elsewhere.contract_of(out)
    assert contract["labels"] == list(model.class_names)
    stored = json.loads((out / "verification.json").read_text("utf-8"))
    assert stored["passed"]
    assert stored["difference"] == found.difference
    # the runtime loads it a second time, and single images say what batches said
    module, job = exports._module(format), exports.Job(subject.subject_of(model), precision, images)
    alone = np.concatenate([module.load(job, out)(image[None].astype(np.float32)) for image in images[:3]])
    expected = np.asarray(model(images[:3].astype(np.float32), training=False))
    np.testing.assert_allclose(alone, expected, atol=1e-4 if precision == "float32" else 1e-2)
    np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "family"),
    [
        ("onnx", "v1"),
        ("openvino", "v1"),
        pytest.param("tf_saved_model", "cifar"),
        pytest.param("keras", "bit", marks=pytest.mark.slow),
        pytest.param("litert", "bit", marks=pytest.mark.slow),
        pytest.param("tf_hub", "v1.5", marks=pytest.mark.slow),
        pytest.param("torch", "v1.5", marks=pytest.mark.slow),
        pytest.param("torch", "bit", marks=pytest.mark.slow),
    ],
)
def test_code_of_the_card_needs_no_resfit(network, tmp_path, format, family):
    from PIL import Image

    from resfit.data import decode

    model = network(family)
    if format == "torch":
        torchside.library("timm")
    exports.export(model, tmp_path / "out", format=format, images=networks.shipped(model.input_spec.size[0])[:20])
    data = io.BytesIO()
    Image.fromarray(networks.shipped(96)[7]).save(data, "JPEG", quality=95)
    received = elsewhere.run_card(tmp_path / "out", data.getvalue())
    pixels = decode.decode_image(data.getvalue(), model.input_spec)[None].astype(np.float32)
    expected = np.asarray(model(pixels, training=False))[0]
    np.testing.assert_allclose(received, expected, atol=0.02)  # a level of 255 in some pixels
    assert received.argmax() == expected.argmax()
    elsewhere.contract_of(tmp_path / "out")
