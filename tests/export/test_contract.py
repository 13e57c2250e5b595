"""Every format with every family: it says what Keras says, in its own runtime, and in a process without resfit."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from resfit import export as exports
from resfit.export import subject
from tests import torchside
from tests.export import elsewhere, networks

FAMILIES = tuple(networks.families())
#: What timm has no network for.
FOREIGN = ("v2", "cifar")
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


def cases():
    for family in FAMILIES:
        slow = pytest.mark.slow if family in ("evo", "mixed") else ()
        yield pytest.param(family, ("onnx", "openvino", "litert"), ("float32",), id=f"{family}-fast", marks=slow)
        rest = ("tf_saved_model", "tf_hub", "keras", "torch")
        yield pytest.param(family, rest, ("float32",), id=f"{family}-rest", marks=pytest.mark.slow)
        yield pytest.param(family, ("openvino", "litert"), ("float16",), id=f"{family}-float16", marks=pytest.mark.slow)
    yield pytest.param("cifar", ("tf_hub", "keras"), ("float32",), id="cifar-keras")


@pytest.mark.parametrize(("family", "formats", "precisions"), cases())
def test_says_what_keras_says(network, tmp_path, family, formats, precisions):
    model = network(family)
    if "torch" in formats:
        torchside.library("timm")
    images = networks.shipped(model.input_spec.size[0])
    rows = exports.export_all(model, tmp_path / "out", formats=formats, precisions=precisions, images=images)
    expected = np.asarray(model(images[:3].astype(np.float32), training=False))
    for row in rows:
        tolerance = TOLERANCES[row.precision]
        if row.format == "torch" and family in FOREIGN:
            assert "timm has no network like this one" in row.problem
            assert row.folder is None
            continue
        assert not row.problem
        found = row.verification
        assert found.images == 75  # the others calibrate
        assert found.agreement >= 0.99
        assert found.difference <= tolerance
        assert 0 < row.size < 4_000_000
        contract = elsewhere.contract_of(row.folder)
        assert (contract["format"], contract["precision"]) == (row.format, row.precision)
        assert contract["labels"] == list(model.class_names)
        stored = json.loads((row.folder / "verification.json").read_text("utf-8"))
        assert stored["passed"]
        assert stored["difference"] == found.difference
        # the runtime loads it a second time, and single images say what batches said
        module, job = exports._module(row.format), exports.Job(subject.subject_of(model), row.precision, images)
        run = module.load(job, row.folder)
        alone = np.concatenate([run(image[None].astype(np.float32)) for image in images[:3]])
        np.testing.assert_allclose(alone, expected, atol=tolerance)
        np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-5)
    assert len(rows) == len(formats)


@pytest.mark.parametrize(
    ("format", "family"),
    [
        ("onnx", "v1"),
        ("openvino", "v1"),
        pytest.param("tf_saved_model", "cifar"),
        pytest.param("keras", "bit", marks=pytest.mark.slow),
        pytest.param("litert", "bit", marks=pytest.mark.slow),
        pytest.param("tf_hub", "v1.5", marks=pytest.mark.slow),
        pytest.param("torch", "v1", marks=pytest.mark.slow),
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
