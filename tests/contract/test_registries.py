"""Each registry takes an entry from outside, and the real way uses it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit import engines, explain, export
from resfit.engines import base as engine_table
from resfit.errors import CheckpointError
from resfit.explain import methods
from resfit.export import base as export_table
from resfit.export.base import Written, image_input, scores_output, usage
from resfit.export.plain import plain, sized
from resfit.tasks.classification import fit
from resfit.tasks.classification.heads import base as heads
from resfit.tasks.classification.heads.linear import LinearHead
from resfit.weights import canonical, load, resolve
from resfit.weights.conventions import base as conventions
from resfit.weights.conventions import pytorch
from resfit.weights.formats import base as formats
from tests.numeric import relative_error
from tests.pictures import write_folder
from tests.training.networks import small_body


@pytest.fixture(scope="module")
def network():
    return resfit.load("resnet10_tiny", preprocess=False)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def torch_names(network) -> dict[str, np.ndarray]:
    found = pytorch.to_torch(network.architecture, "timm", arrays=canonical.arrays(network))
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}


def test_a_format_is_one_registered_reader(network, images, tmp_path):
    @formats.register_format("toy", suffixes=(".toy",), order=1)
    def read(path: Path) -> formats.Tensors:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: np.load(archive.open(name)) for name in archive.namelist()}
        return formats.Tensors(path, arrays, {"resfit": network.architecture}, network.input_spec)

    try:
        with zipfile.ZipFile(tmp_path / "net.toy", "w") as archive:
            for name, array in torch_names(network).items():
                with archive.open(name, "w") as member:
                    np.save(member, array)
        loaded = resfit.load(str(tmp_path / "net.toy"), preprocess=False)
        assert relative_error(loaded(images), network(images)) < 1e-5
        named = resfit.load("resnet10_tiny", weights=tmp_path / "net.toy", preprocess=False)
        assert relative_error(named(images), network(images)) < 1e-5
        assert resolve.choose(["README.md", "net.toy", "old.pth"], "here") == ["net.toy"]
        with pytest.raises(CheckpointError, match=r"toy, .*KerasHub"):
            load.read_source(__file__)
    finally:
        formats.remove_format("toy")
    assert ".toy" not in formats.suffixes()


def test_a_convention_is_one_registered_translation(network, images, tmp_path):
    @conventions.register_convention("shouted", recognises=lambda read: all(map(str.isupper, read.arrays)), order=1)
    def translate(tensors, *, prefix=None, averaged=False, ignore=()):
        arrays = {name.lower(): array for name, array in tensors.arrays.items()}
        return conventions.Translation("shouted", "", arrays, {}, {}, (), ("it was loud",))

    try:
        np.savez(tmp_path / "net.npz", **{name.upper(): array for name, array in canonical.arrays(network).items()})
        loaded = resfit.load(tmp_path / "net.npz", architecture="resnet10_tiny", preprocess=False)
        assert relative_error(loaded(images), network(images)) < 1e-5
        assert "it was loud" in loaded.assumptions
    finally:
        conventions.remove_convention("shouted")
    with pytest.raises(CheckpointError):
        load.read_source(tmp_path / "net.npz")


def test_names_that_are_taken_are_refused():
    with pytest.raises(ValueError, match=r"a format named 'npz' is registered already"):
        formats.register_format("npz")(lambda path: None)


def test_every_ending_is_read_by_one_format_or_by_what_is_in_the_file():
    endings = [suffix for kind in formats.all_formats() for suffix in kind.suffixes]
    assert sorted(endings) == sorted(set(endings))
    assert {".pth", ".safetensors", ".onnx", ".npz", ".keras", ".h5", ".index", ".pkl"} <= set(endings)


def test_a_network_around_a_network_is_a_convention_too(network, tmp_path):
    """What detectors do: read whole by a convention of their own, and as a body where that alone is wanted."""

    @conventions.register_convention(
        "counted", recognises=lambda read: "extra.weight" in read.arrays, order=1, is_larger=True
    )
    def read(tensors, *, architecture=None, **reading):
        return len(tensors.arrays), architecture

    arrays = {f"backbone.{name}": array for name, array in torch_names(network).items()}
    np.savez(tmp_path / "net.npz", **{"extra.weight": np.zeros(3, "float32"), **arrays})
    try:
        assert load.read_source(tmp_path / "net.npz", architecture="x") == (1 + len(arrays), "x")
        body = load.read_source(tmp_path / "net.npz", architecture="resnet10_tiny", include_top=False)
    finally:
        conventions.remove_convention("counted")
    assert body.spec.depths == network.architecture.depths
    assert any("extra" in text for text in body.assumptions)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos") / "colours", each=8)


@pytest.fixture(scope="module")
def classifier(photos):
    return fit(photos, model=small_body(), strategy="probe", cache=False, seed=0)


def test_an_engine_is_one_registered_class(tmp_path):
    body = small_body()

    def convert(model, folder):
        model.save(folder / "toy.keras")
        return {"conversion": "none"}

    @engines.register_engine("toy", convert=convert, packages=("numpy",))
    class ToyEngine:
        name, precision = "toy", "float32"

        def __init__(self, folder, *, precision, threads):
            import keras

            self.model = keras.saving.load_model(folder / "toy.keras", compile=False)

        def run(self, images):
            return np.asarray(self.model(np.asarray(images, "float32"), training=False)) * self.error

        error = 1.0

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype="uint8")
    try:
        made = engines.create(body, "toy", cache=tmp_path)
        assert relative_error(made.run(images), engines.create(body, "keras").run(images)) < 1e-5
        assert made.name == "toy"
        ToyEngine.error = np.linspace(-1, 1, body.output_shape[-1])  # now it is wrong, and resfit says so
        with pytest.warns(UserWarning, match="toy must agree with Keras"):
            assert engines.create(body, "toy", cache=tmp_path / "other").run(images) is not None
    finally:
        engine_table.RUNTIMES.remove("toy")
    with pytest.raises(ValueError, match="engine must be one of"):
        engines.create(body, "toy")


def test_an_export_format_is_one_registered_writer(classifier, tmp_path):
    @export.register_export_format("toy")
    class ToyFormat:
        PRECISIONS, MODULES, INT8_MODULES, RUNTIME = ("float32",), (), (), "numpy"

        @staticmethod
        def write(job, folder):
            sized(plain(job.subject.scores, fold=False), job.subject.input_spec).save(folder / "net.keras")
            return Written(
                files=("net.keras",),
                input=image_input(job),
                outputs=(scores_output(job),),
                usage=usage(
                    job,
                    head="import keras\n",
                    load='network = keras.saving.load_model("net.keras", compile=False)\n',
                    run="network(images, training=False).numpy()",
                ),
            )

    try:
        made = classifier.export(tmp_path / "toy", format="toy")
        assert made.verification.agreement == 1.0
        assert made.verification.difference < 1e-5
    finally:
        export_table.REGISTERED.remove("toy")


def test_a_head_is_one_registered_fit(photos, tmp_path):
    @heads.register_head("middles")
    def fit_middles(job):
        middles = np.stack([job.features[job.labels == label].mean(axis=0) for label in range(job.classes)])
        return LinearHead(2 * middles.T, -np.square(middles).sum(axis=1), C=1.0)

    try:
        fitted = fit(photos, model=small_body(), head="middles", strategy="probe", cache=False, seed=0)
        assert fitted.metrics["test"]["accuracy"] == 1.0
        fitted.save(tmp_path / "colours.resfit")
        again = resfit.Classifier.load(tmp_path / "colours.resfit")
        (one,), (other,) = (some.predict(next(photos.rglob("*.png"))) for some in (fitted, again))
        assert (again.recipe.head, one.label) == ("middles", other.label)
    finally:
        heads.HEADS.remove("middles")


def test_an_explainer_is_one_registered_function(classifier):
    @explain.register_explainer("brightness", reads_maps=False)
    def brightness(job, images, targets):
        yield from ((image.mean(axis=-1), 0.0) for image in images)

    image = np.zeros((1, 32, 32, 3), "float32")
    image[0, 8:16, 20:28] = 255
    try:
        (found,) = explain.attribute(classifier.model, image, method="brightness")
    finally:
        methods.METHODS.remove("brightness")
    assert found.method == "brightness"
    assert found.map[8:16, 20:28].min() == 1.0
    assert found.map.sum() == 64
