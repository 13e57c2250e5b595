"""Every format with every family: it says what Keras says, in its own runtime, and in a process without resfit."""

from __future__ import annotations

import json

import pytest

from resfit import export as exports
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
def test_says_what_keras_says(network, tmp_path, monkeypatch, family, formats, precisions):
    model = network(family)
    if "torch" in formats:
        torchside.library("timm")
        (tmp_path / "shim").mkdir()
        monkeypatch.syspath_prepend(torchside.shim(tmp_path / "shim"))
    images = networks.shipped(model.input_spec.size[0])
    rows = exports.export_all(model, tmp_path / "out", formats=formats, precisions=precisions, images=images)
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
        assert contract["input"]["axes"][0] == contract["outputs"][0]["axes"][0] == "batch"
        assert len(contract["input"]["axes"]) == len(contract["input"]["shape"]) == 4
        # what the card states is what its code gave, as it is printed, in a process without resfit
        code = elsewhere.code_of_card(row.folder)
        assert "resfit" not in code
        assert found.no_images == (0, networks.CLASSES)
        assert isinstance(found.other_size, str)  # refused, in the runtime's own words
        pixels, scores = found.checks[:2]
        assert pixels.what == "the pixels of a photo, averaged"
        assert pixels.difference < 0.1  # a whole crop against one in fractions of a pixel
        assert scores.difference <= tolerance
        assert f"{found.difference:.1e} of the largest" in (row.folder / "README.md").read_text("utf-8")
        assert contract["labels"] == list(model.class_names)
        stored = json.loads((row.folder / "verification.json").read_text("utf-8"))
        assert stored["passed"]
        assert stored["difference"] == found.difference
    assert len(rows) == len(formats)
