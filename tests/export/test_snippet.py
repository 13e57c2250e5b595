"""The code of the model cards: run as it is printed, and what is verified is what is shipped."""

from __future__ import annotations

import dataclasses
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from resfit import export as exports
from resfit.errors import ExportError, MissingDependencyError
from resfit.export import export_model, onnx, openvino, snippet
from resfit.export import images as real_images
from tests.export import elsewhere, networks

_FAST = ("onnx", "openvino", "litert")


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    """An export in each format that loads fast, compared on 15 of 20 images."""
    pytest.importorskip("ai_edge_litert")
    out = tmp_path_factory.mktemp("snippets")
    rows = exports.export_all(
        network("cifar"), out, formats=_FAST, precisions=["float32"], images=networks.shipped(32, 20)
    )
    assert not any(row.problem for row in rows)
    return {row.format: row for row in rows}


def photo(size=(32, 32), format="PNG"):
    data = io.BytesIO()
    Image.fromarray(networks.shipped(96)[7]).resize(size).save(data, format, quality=95)
    return data.getvalue()


def test_numbers_of_the_card_are_those_of_its_code(network, made):
    images = networks.shipped(32, 20)[:5]
    expected = np.asarray(network("cifar")(images.astype(np.float32), training=False))
    for row in made.values():
        received = snippet.run(elsewhere.code_of_card(row.folder), row.folder, images, photo(), seconds=0)
        np.testing.assert_allclose(received.scores, expected, atol=1e-5)
        np.testing.assert_allclose(received.alone, expected[:3], atol=1e-5)
        assert received.pixels.shape == (1, 32, 32, 3)
        elsewhere.contract_of(row.folder)  # nothing is left behind


def test_only_images_of_the_stated_size_are_taken(made):
    """A residual network gives scores for any size, and other ones than it was measured with."""
    import onnxruntime
    import openvino as runtime
    from ai_edge_litert.interpreter import Interpreter

    folders = {name: row.folder for name, row in made.items()}
    session = onnxruntime.InferenceSession(str(folders["onnx"] / "model.onnx"))
    compiled = runtime.Core().compile_model(folders["openvino"] / "model.xml", "CPU")
    runner = Interpreter(str(folders["litert"] / "model.tflite")).get_signature_runner("serving_default")
    runs = {
        "onnx": lambda images: session.run(["scores"], {"images": images})[0],
        "openvino": lambda images: np.array(compiled({"images": images})["scores"]),
        "litert": lambda images: runner(images=images)["scores"],
    }
    for run in runs.values():
        assert run(np.zeros((3, 32, 32, 3), np.float32)).shape == (3, 5)
        # twice the pixels, half of them, and sides that are changed over
        for shape in ((1, 200, 300, 3), (1, 64, 32, 3), (2, 32, 16, 3), (1, 32, 64, 3)):
            with pytest.raises(Exception, match=r"dimension|incompatible|broadcast|prepare|reshape"):
                run(np.zeros(shape, np.float32))


def test_axes_and_tensors_are_named(made):
    import onnx as library
    import openvino as runtime
    from ai_edge_litert.interpreter import Interpreter

    for row in made.values():
        contract = elsewhere.contract_of(row.folder)
        assert contract["input"]["axes"] == ["batch", "height", "width", "channels"]
        assert contract["outputs"][0]["axes"] == ["batch", "label"]
        assert "(batch, height 32, width 32, channels 3)" in (row.folder / "README.md").read_text("utf-8")
    graph = library.load(made["onnx"].folder / "model.onnx").graph
    for tensor, sides in ((graph.input[0], ["batch", 32, 32, 3]), (graph.output[0], ["batch", 5])):
        assert [side.dim_param or side.dim_value for side in tensor.type.tensor_type.shape.dim] == sides
    model = runtime.Core().read_model(made["openvino"].folder / "model.xml")
    assert model.get_parameters()[0].get_layout().to_string() == "[N,H,W,C]"
    assert model.get_results()[0].get_layout().to_string() == "[N,C]"
    interpreter = Interpreter(str(made["litert"].folder / "model.tflite"))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["scores"]}}
    assert elsewhere.contract_of(made["litert"].folder)["signatures"] == {
        "serving_default": {"inputs": ["images"], "outputs": ["scores"]}
    }


def test_openvino_states_its_precision(made):
    import openvino as runtime

    folder = made["openvino"].folder
    assert '"CPU", {"INFERENCE_PRECISION_HINT": "f32"}' in elsewhere.code_of_card(folder)
    assert "computes in bfloat16 on processors that have it" in (folder / "README.md").read_text("utf-8")
    marks = {}
    for layer in ElementTree.parse(folder / "model.xml").iterfind("./layers/layer"):
        found = [one.get("value") for one in layer.iter("attribute") if one.get("name") == "DisablePrecisionConversion"]
        marks.setdefault(layer.get("type"), set()).add(tuple(found))
    assert marks["Convolution"] == marks["MatMul"] == marks["Add"] == {("dynamic:bf16,f16",)}
    assert marks["Const"] == marks["Parameter"] == {()}
    # OpenVINO itself reads it as its own attribute, which is no text any more
    for operation in runtime.Core().read_model(folder / "model.xml").get_ordered_ops():
        if operation.get_type_name() in ("Convolution", "MatMul"):
            read = [key for key in operation.get_rt_info() if key.startswith(("DisablePrecisionConversion", "precise"))]
            assert len(read) == 1
            assert read[0].endswith("_0")


def test_what_the_hint_is_worth_is_measured(made, network):
    """On a processor with bfloat16 it is stated; on others there is nothing to lose."""
    import openvino as runtime

    away = openvino.without_hint(made["openvino"].folder / "model.xml", networks.shipped(32, 20)[:4])
    stated = [check for check in made["openvino"].verification.checks if "INFERENCE_PRECISION_HINT" in check.what]
    if "BF16" in runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 0 <= stated[0].difference < 0.5
        assert away < 0.5
    else:
        assert not stated
        assert away < 1e-5


def test_float16_keeps_its_weights_and_the_mark(network, tmp_path):
    row = exports.export(
        network("cifar"), tmp_path / "half", format="openvino", precision="float16", images=networks.shipped(32, 20)
    )
    text = (row.folder / "model.xml").read_text("utf-8")
    assert 'value="dynamic:bf16,f16"' in text
    assert 'element_type="f16"' in text
    assert 1e-7 < row.verification.difference < 1e-2


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ('{"images": images})[0]', '{"images": images / 2})[0]', "a score differs by"),
        ("np.asarray(photo,", "np.asarray(photo.rotate(180),", "the pixels of a photo, averaged differ by"),
        ("scores = classify(images)[0]", "scores = classify(images + 30)[0]", "the scores of a photo differ by"),
        ("np.zeros((0, 5)", "np.zeros((1, 5)", "an empty batch must give no scores"),
    ],
)
def test_a_card_with_a_mistake_does_not_stay(network, tmp_path, monkeypatch, right, wrong, problem):
    """The network itself is right; only the code that is printed is not."""
    write = onnx.write

    def mistaken(job, folder):
        written = write(job, folder)
        assert right in written.usage
        return dataclasses.replace(written, usage=written.usage.replace(right, wrong))

    monkeypatch.setattr(onnx, "write", mistaken)
    with pytest.raises(ExportError, match=problem):
        exports.export(network("cifar"), tmp_path / "out", format="onnx", images=networks.shipped(32, 20))
    assert not (tmp_path / "out").exists()


def test_a_network_that_takes_any_size_is_not_shipped_as_one_of_a_size(network, tmp_path, monkeypatch):
    monkeypatch.setattr("resfit.export.plain.sized", lambda model, contract: model)
    with pytest.raises(ExportError, match="images of another size are not refused"):
        exports.export(network("cifar"), tmp_path / "out", format="onnx", images=networks.shipped(32, 20))


def test_a_contract_without_resizing_leaves_the_size_open(tmp_path):
    model = networks.network("cifar")
    model.input_spec = dataclasses.replace(model.input_spec, resize_mode="none")
    row = exports.export(model, tmp_path / "out", format="onnx", images=networks.shipped(32, 20))
    contract = elsewhere.contract_of(row.folder)
    assert contract["input"]["shape"] == [None, None, None, 3]
    assert row.verification.other_size is None
    code = elsewhere.code_of_card(row.folder)
    received = snippet.run(code, row.folder, networks.shipped(48, 20)[:2], photo((48, 48)), seconds=0)
    expected = np.asarray(model(networks.shipped(48, 20)[:2].astype(np.float32), training=False))
    np.testing.assert_allclose(received.scores, expected, atol=1e-5)


def test_code_that_fails_says_why(tmp_path):
    images = networks.shipped(32, 20)[:1]
    for code, error, words in (
        ("import resfit", MissingDependencyError, "must not need resfit"),
        ("import numpy\nfrom numpy import no_such_name", MissingDependencyError, "no_such_name"),
        ("raise ValueError('of its own')", ExportError, "fails: ValueError: of its own"),
        ("classify = images = scores = 1", ExportError, "prints nothing|not callable"),
    ):
        with pytest.raises(error, match=words):
            snippet.run(code, tmp_path, images, photo(), seconds=0)
    assert not any(tmp_path.iterdir())


def test_compared_images_are_counted_and_named(classifier, photos, tmp_path):
    """Which of the images it was tested on, and why not all."""
    one = export_model.subject_of(classifier)
    total = classifier.metrics["images"]["test"]
    found = real_images.gather(one)
    kept = total // 4
    assert found.source.startswith(
        f"{total - kept} of the {total} images it was tested on, drawn at random with seed 0"
    )
    assert f"{kept} others are kept for calibrating int8" in found.source
    assert len(found.files) == len(set(found.files)) == total - kept
    assert all((photos / name).is_file() for name in found.files)
    fewer = real_images.gather(one, count=5)
    assert fewer.source.startswith(f"5 of the {total} ")
    assert f"{total - kept - 5} are left out" in fewer.source
    # one is gone since, and one cannot be read
    tests = [(tmp_path / f"{number}.png", label) for number, (_, label) in enumerate(one.tests)]
    for (copy, _), (path, _) in zip(tests, one.tests, strict=True):
        copy.write_bytes(path.read_bytes())
    tests[0][0].unlink()
    order = np.random.default_rng(0).permutation(total - 1)
    tests[1:][order[-1]][0].write_bytes(b"no image")
    partly = real_images.gather(dataclasses.replace(one, tests=tuple(tests)))
    calibrated = (total - 1) // 4
    assert partly.source.startswith(f"{total - 2 - calibrated} of the {total} ")
    assert "1 cannot be read; 1 are not there any more" in partly.source
    away = dataclasses.replace(one, tests=tuple((path / "gone", label) for path, label in one.tests))
    assert f"none of the {total} images it was tested on is there any more" in real_images.gather(away).source


def test_a_large_jpeg_is_resized_as_the_card_says(classifier, tmp_path):
    (tmp_path / "photo.jpeg").write_bytes(photo((500, 400), "JPEG"))
    row = exports.export(classifier, tmp_path / "out", format="onnx", images=[str(tmp_path / "photo.jpeg")])
    pixels, scores = row.verification.checks
    assert 0 < pixels.difference < 2
    assert scores.difference < 1e-5
    stored = json.loads((tmp_path / "out" / "verification.json").read_text("utf-8"))
    assert stored["files"] == ["photo.jpeg"]
    assert stored["source"].startswith("1 of the 1 files of a list")
