"""Exports of a classifier: what stands in the folder, what is refused, and that a wrong export does not stay."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from resfit import engines
from resfit import export as exports
from resfit.errors import ArgumentError, DataError, ExportError
from resfit.evaluation.calibrated import Calibration
from resfit.export import export_model, folder, snippet, verification
from resfit.export import images as real_images
from tests.export import elsewhere, networks
from tests.training.networks import coloured


@pytest.fixture(scope="module")
def made(classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "colours-onnx"
    return classifier.export(out, format="onnx")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_holds_all_that_has_to_travel(classifier, made):
    assert sorted(tree(made.folder)) == [
        "README.md", "SHA256SUMS", "contract.json", "labels.txt", "model.onnx", "verification.json",
    ]  # fmt: skip
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    assert (contract["format"], contract["precision"], contract["files"]) == ("onnx", "float32", ["model.onnx"])
    assert contract["input"]["shape"] == [None, 32, 32, 3]
    assert contract["image"]["mean"] == list(classifier.input_spec.mean)
    assert contract["temperature"] == {"value": classifier.temperature, "applied": True}
    assert contract["labels"] == ["blue", "green", "red"]
    assert (made.folder / "labels.txt").read_text("utf-8") == "blue\ngreen\nred\n"
    card = (made.folder / "README.md").read_text("utf-8")
    assert "blue, green, red" in card
    assert f"{classifier.metrics['test']['accuracy']:.1%}" in card
    assert classifier.fingerprint in card
    assert str(made.folder) not in card


def test_tested_images_are_what_it_is_compared_on(classifier, made):
    found = made.verification
    # 48 images, a fifth of them set aside for the test, a quarter of those calibrates
    total = classifier.metrics["images"]["test"]
    assert found.source.startswith(
        f"{found.images} of the {total} images it was tested on, drawn at random with seed 0"
    )
    assert found.source in (made.folder / "README.md").read_text("utf-8")
    assert found.images == classifier.metrics["images"]["test"] - classifier.metrics["images"]["test"] // 4
    assert found.accuracy == found.keras_accuracy == 1.0
    assert found.runtime.startswith("onnxruntime 1.")
    stored = json.loads((made.folder / "verification.json").read_text("utf-8"))
    assert stored["images"] == found.images
    assert stored["limits"] == {"difference": 1e-4, "agreement": 0.99}


def test_checksums_are_those_of_sha256sum(made):
    elsewhere.contract_of(made.folder)
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=made.folder, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_network_is_left_as_it_was(classifier, made):
    images, _ = coloured(4)
    before = classifier.model(images.astype(np.float32), training=False)
    names = [layer.name for layer in classifier.model.layers]
    fingerprint = engines.fingerprint(classifier.model)
    export_model.subject_of(classifier).scores  # noqa: B018 builds its networks
    assert [layer.name for layer in classifier.model.layers] == names
    assert engines.fingerprint(classifier.model) == fingerprint
    np.testing.assert_array_equal(classifier.model(images.astype(np.float32), training=False), before)


def test_temperature_is_in_the_network(classifier, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(classifier, "calibration", Calibration(2.5))
    exports.export(classifier, tmp_path / "out", format="onnx")
    assert elsewhere.contract_of(tmp_path / "out")["temperature"] == {"value": 2.5, "applied": True}
    images = coloured(5)[0].astype(np.float32)
    plain = np.asarray(classifier.model(images, training=False), np.float64)
    cooled = plain ** (1 / 2.5)
    cooled /= cooled.sum(axis=1, keepdims=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    received = session.run(["scores"], {"images": images})[0]
    np.testing.assert_allclose(received, cooled, atol=1e-5)
    assert np.abs(received - plain).max() > 0.005
    monkeypatch.setattr(classifier, "calibration", Calibration(-1.0))
    with pytest.raises(ArgumentError, match="temperature must be positive"):
        exports.export(classifier, tmp_path / "more", format="onnx")


def test_a_wrong_export_does_not_stay(classifier, made, tmp_path, monkeypatch):
    """A converter that gets one weight wrong."""
    from resfit.engines import onnxruntime as engine

    right = engine.converted

    def wrong(model, output):
        network, way = right(model, output)
        largest = max(network.graph.initializer, key=lambda array: len(array.raw_data))
        largest.raw_data = (np.frombuffer(largest.raw_data, np.float32) * np.float32(1.5)).tobytes()
        return network, way

    out = tmp_path / "out"
    earlier = shutil.copytree(made.folder, out)
    before = tree(earlier)
    monkeypatch.setattr(engine, "converted", wrong)
    with pytest.raises(ExportError, match=r"outputs differ from Keras'.*a score differs by .*Nothing was written"):
        classifier.export(out, format="onnx")
    assert tree(out) == before
    with pytest.raises(ExportError):
        classifier.export(tmp_path / "new", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (row,) = exports.export_all(classifier, tmp_path / "all", formats=["onnx"], precisions=["float32"])
    assert row.failed
    assert row.folder is None
    assert row.verification.difference > 1e-4
    assert "a score differs" in exports.line(row)
    assert not (tmp_path / "all" / "onnx").exists()


@pytest.mark.parametrize("format", ["onnx", "openvino", "litert"])
def test_eight_bits_that_agree_stand(classifier, photos, tmp_path, format):
    pytest.importorskip("nncf")
    good, whole = (
        exports.export(classifier, tmp_path / precision, format=format, precision=precision, images=photos)
        for precision in ("int8", "float32")
    )
    assert good.verification.agreement >= 0.99
    assert good.verification.difference > 1e-4  # eight bits, no copy of the floats
    weights = {"openvino": "model.bin", "onnx": "model.onnx", "litert": "model.tflite"}[format]
    small, large = ((made.folder / weights).stat().st_size for made in (good, whole))
    assert small < 0.6 * large
    assert "Calibrated on 12 images" in (good.folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("format", "most"), [("onnx", 1.0), ("openvino", 1.0), ("litert", 0.75)])
def test_convolutions_stay_in_floats_by_their_share(network, tmp_path, format, most):
    pytest.importorskip("nncf")
    model, images = network("cifar"), networks.shipped(32)
    expected = np.asarray(model(images.astype(np.float32), training=False))
    module, job = exports.REGISTERED[format], exports.ExportJob(export_model.subject_of(model), "int8", images[:32])
    away, sizes = [], []
    for share in (0.0, most):
        out = tmp_path / str(share)
        out.mkdir()
        job = dataclasses.replace(job, share=share)
        written = module.write(job, out)
        folder.write_text(out / folder.LABELS, folder.labels_text(list(job.subject.labels)))
        png = real_images.png(images[0])
        away.append(np.abs(snippet.run(written.usage, out, images, png, seconds=0).scores - expected).mean())
        sizes.append(max(path.stat().st_size for path in out.iterdir()))
    assert 1e-4 < away[0] < 0.1
    assert away[1] < (1e-6 if most == 1 else 0.1)
    assert sizes[1] > 1.2 * sizes[0]


def test_eight_bits_that_disagree_do_not_stand(network, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(exports, "FLOAT_SHARES", (0.0,))
    images = networks.shipped(64)
    # random weights leave no margin between the classes
    with pytest.raises(ExportError, match=r"top-1 agreement is .*Pass more images"):
        exports.export(network("bit"), tmp_path / "bad", format="openvino", precision="int8", images=images)
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_kill_while_it_is_checked_leaves_the_earlier_export(made, tmp_path):
    out = shutil.copytree(made.folder, tmp_path / "out")
    before = tree(out)
    program = textwrap.dedent(
        """
        import os, signal, sys
        from resfit import export
        from resfit.export import verification
        from tests.export import networks

        verification.agreement = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        export.export(networks.network("cifar"), sys.argv[1], format="keras", images=networks.shipped(32, 20))
        """
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    done = subprocess.run([sys.executable, "-c", program, out], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert tree(out) == before
    assert len(list(tmp_path.iterdir())) == 2  # what the killed one left
    exports.export(networks.network("cifar"), out, format="onnx", images=networks.shipped(32, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # is gone


def test_earlier_exports_are_replaced_and_nothing_else(classifier, made, tmp_path):
    out = shutil.copytree(made.folder, tmp_path / "out")
    (out / "contract.json").write_text((out / "contract.json").read_text("utf-8").replace("blue", "bleu"))
    exports.export(classifier, out, format="openvino")
    assert elsewhere.contract_of(out)["format"] == "openvino"
    assert not (out / "model.onnx").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match="holds something else"):
        exports.export(classifier, tmp_path / "thesis", format="onnx")
    assert tree(tmp_path / "thesis") == {"thesis.tex": b"precious"}


def test_arguments(classifier, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ArgumentError, match="Did you mean 'onnx'"):
        exports.export(classifier, out, format="onx")
    with pytest.raises(ArgumentError, match="Did you mean 'float16'"):
        exports.export(classifier, out, format="onnx", precision="float61")
    with pytest.raises(ArgumentError, match=r"'onnx' has the precisions float32, int8\..*is for openvino, litert"):
        exports.export(classifier, out, format="onnx", precision="float16")
    with pytest.raises(ArgumentError, match="version must be at least 1"):
        exports.export(classifier, out, version=0)
    with pytest.raises(ArgumentError, match=r"name of an export.*Received: '\.\./up'"):
        exports.export(classifier, out, format="onnx", name="../up")
    with pytest.raises(ArgumentError, match=r"shape \(n, 32, 32, 3\)"):
        exports.export(classifier, out, format="onnx", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(DataError):
        exports.export(classifier, out, format="onnx", images=tmp_path)
    with pytest.raises(ExportError, match=r"no maintained converter.*4\.22\.0.*onnxruntime-web"):
        exports.export(classifier, out, format="tfjs")
    assert not any(tmp_path.iterdir())
    assert exports.cases(precisions=["int8"]) == [("onnx", "int8"), ("openvino", "int8"), ("litert", "int8")]


def test_networks_without_a_classifier_are_refused(tmp_path):
    import keras

    import resfit

    body = resfit.load("resnet20", weights=None, include_top=False, pooling="avg")
    with pytest.raises(ArgumentError, match="include_top=True"):
        exports.export(body, tmp_path / "out", format="onnx")
    half = resfit.load("resnet20", weights=None, dtype="mixed_float16")
    with pytest.raises(ArgumentError, match="dtype='float32'"):
        exports.export(half, tmp_path / "out", format="onnx")
    raw = resfit.load("resnet20", weights=None, preprocess=False)
    with pytest.raises(ArgumentError, match="preprocess=True"):
        exports.export(raw, tmp_path / "out", format="onnx")
    bare = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ArgumentError, match="input contract"):
        exports.export(bare, tmp_path / "out", format="onnx")


def test_a_network_by_its_name(tmp_path):
    """The one that ships with resfit, compared on images that do too."""
    import onnxruntime

    import resfit

    made = exports.export("resnet10_tiny", tmp_path / "out", format="onnx")
    assert "of the 2000 images of Fashion-MNIST, which ships with resfit" in made.verification.source
    model = resfit.load("resnet10_tiny")
    contract = elsewhere.contract_of(made.folder)
    assert (contract["name"], contract["labels"]) == ("resnet10_tiny", list(model.class_names))
    card = (made.folder / "README.md").read_text("utf-8")
    assert "Weights resnet10_tiny" in card
    assert "licence: " in card
    images = networks.shipped(64)[:9].astype(np.float32)
    session = onnxruntime.InferenceSession(str(made.folder / "model.onnx"))
    received = session.run(["scores"], {"images": images})[0]
    np.testing.assert_allclose(received, model(images, training=False), atol=1e-5)


def test_several_labels(tmp_path):
    """Scores of their own for each label, by a sigmoid."""
    from resfit.tasks.classification import fit
    from tests.pictures import picture
    from tests.training.networks import small_body

    rows = ["path,label"]
    for number in range(36):
        kind = ("red", "blue", "red;blue")[number % 3]
        left, right = kind.split(";")[0], kind.split(";")[-1]
        halves = np.concatenate([picture(left, number)[:, :12], picture(right, number + 99)[:, 12:]], axis=1)
        from PIL import Image

        Image.fromarray(halves).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{kind}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = fit(tmp_path / "table.csv", model=small_body(), strategy="probe", cache=False, label_separator=";")
    made = exports.export(found, tmp_path / "out", format="onnx")
    assert elsewhere.contract_of(made.folder)["several_labels"] is True
    assert made.verification.accuracy is None  # there is no one class
    assert made.verification.difference < 1e-5
    assert "may have several labels" in (made.folder / "README.md").read_text("utf-8")


def test_all_has_a_table_and_a_picture(classifier, tmp_path):
    said: list[str] = []
    rows = exports.export_all(
        classifier,
        tmp_path / "all",
        formats=["onnx", "openvino", "torch"],
        precisions=["float32"],
        say=said.append,
    )
    assert [(row.format, bool(row.problem)) for row in rows] == [
        ("onnx", False), ("openvino", False), ("torch", True),
    ]  # fmt: skip
    assert [row.failed for row in rows] == [False] * 3
    assert "timm" in rows[2].problem
    assert len(said) == 3
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "exports.json", "exports.png", "onnx", "openvino",
    ]  # fmt: skip
    assert json.loads((tmp_path / "all" / "exports.json").read_text("utf-8")) == [row.to_dict() for row in rows]
    from PIL import Image

    with Image.open(tmp_path / "all" / "exports.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_images_are_split_and_drawn_by_seed(classifier, photos):
    one = export_model.subject_of(classifier)
    first, again, other = (real_images.gather(one, photos, seed=seed) for seed in (0, 0, 1))
    assert len(first.calibrating) == 12
    assert len(first.checking) == 36
    np.testing.assert_array_equal(first.checking, again.checking)
    assert not np.array_equal(first.checking, other.checking)
    both = np.concatenate([first.checking, first.calibrating]).reshape(48, -1)
    assert len(np.unique(both, axis=0)) == 48  # nothing is in both parts
    for row, data in first.encoded.items():
        assert data.startswith(b"\x89PNG")
        assert first.labels[row] >= 0
    shipped = real_images.gather(export_model.subject_of(classifier), [str(photos / "red" / "000.png")])
    assert len(shipped.checking) == len(shipped.calibrating) == 1


def test_agreement_knows_ties_and_what_is_no_number():
    expected = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    nearly = expected + np.array([[-1e-5, 1e-5]])
    assert verification.agreement(nearly, expected) == 1.0
    # int8: only what Keras itself ties counts as a tie
    close = np.array([[0.50001, 0.49999]])
    assert verification.agreement(close[:, ::-1], close) == 1.0
    assert verification.agreement(close[:, ::-1], close, precision="int8") == 0.0
    wrong = expected.copy()
    wrong[3] = wrong[3][::-1]
    assert verification.agreement(wrong, expected) == 0.75
    assert verification.agreement(np.full((4, 2), np.nan), expected) == 0.0
    assert verification.difference(np.full((4, 2), np.nan), expected) == float("inf")
    assert verification.difference(expected[:, :1], expected) == float("inf")
    assert verification.difference(nearly, expected) == pytest.approx(1e-5 / 0.9)
    assert verification.difference(nearly / 1000, expected / 1000) == pytest.approx(1e-5 / 0.9)
    assert verification.agreement(expected > 0.5, expected, multilabel=True) == 1.0
    assert verification.agreement(1 - expected, expected, multilabel=True) == 1 / 4
    assert verification.accuracy(expected, np.array([0, 0, 0, -1])) == pytest.approx(2 / 3)
    assert verification.accuracy(expected, np.full(4, -1)) is None


def test_verdicts_keep_to_their_limits():
    def verdict(precision, difference, agreement, checks=()):
        return verification.Verification(
            "r 1", precision, 100, "s", difference, agreement, None, None, 1.0, checks
        ).problems

    assert verdict("float32", 1e-4, 1.0) == ()
    assert "more than 1e-04" in verdict("float32", 1.01e-4, 1.0)[0]
    assert verdict("float16", 9e-3, 0.99) == ()
    assert "98.9%" in verdict("int8", 0.5, 0.989)[0]
    assert verdict("int8", 0.5, 0.99) == ()
    assert len(verdict("float32", float("nan"), float("nan"))) == 2
    check = verification.Check("features", 0.2, 0.1, "of the largest")
    assert verdict("float32", 0.0, 1.0, (check,)) == ("features differ by 0.2 of the largest, more than 0.1",)
