"""The drop-in for keras.applications: the same signatures, errors, preprocessing, labels and scripts."""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfit import applications
from resfit.errors import ArgumentError, CheckpointError, DownloadError
from resfit.networks import catalog
from resfit.preprocessing import TORCH
from resfit.weights import canonical, fetch, registry, write
from resfit.weights.formats import keras_h5
from resfit.weights.keras_models import shapes_alone
from tests.numeric import images, randomize, relative_error

SIX = ["ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"]


# the functions


def test_every_row_has_a_function():
    functions = {applications.function_name(name): name for name in catalog.rows()}
    assert len(functions) == len(catalog.rows())
    assert set(functions) <= set(dir(applications))
    for called in functions:
        function = getattr(applications, called)
        assert (function.__name__, function.__module__) == (called, "resfit.applications")
        assert function.__doc__.startswith("Builds ")


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("resnet50v1.5", "ResNet50V1_5"),
        ("resnet50v2", "ResNet50V2"),
        ("resnet50d", "ResNet50D"),
        ("seresnext50_32x4d", "SEResNeXt50_32x4d"),
        ("seresnext26t_32x4d", "SEResNeXt26T_32x4d"),
        ("wide_resnet50_2", "WideResNet50_2"),
        ("resnetv2_50x1_bit", "ResNetV2_50x1_BiT"),
        ("resnetv2_50d_gn", "ResNetV2_50D_GN"),
        ("resnetv2_50d_evos", "ResNetV2_50D_EvoS"),
        ("ecaresnet50d_pruned", "ECAResNet50D_Pruned"),
        ("test_resnet", "TestResNet"),
        ("resnet10_tiny", "ResNet10Tiny"),
        ("ecaresnet14d_tiny", "ECAResNet14DTiny"),
        ("ecaresnetlight", "ECAResNetLight"),
        ("wrn_28_10", "WRN_28_10"),
    ],
)
def test_names_in_camel_case(name, called):
    assert applications.function_name(name) == called


@pytest.mark.parametrize("name", SIX)
def test_arguments_and_defaults_are_those_of_keras(name):
    theirs = inspect.signature(getattr(keras.applications, name)).parameters
    ours = inspect.signature(getattr(applications, name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_other_defaults_follow_the_row():
    parameters = inspect.signature(applications.ResNet10Tiny).parameters
    assert (parameters["classes"].default, parameters["weights"].default) == (200, "tiny-imagenet")
    assert inspect.signature(applications.ResNet56).parameters["weights"].default == "cifar-10"
    assert inspect.signature(applications.PreActResNet20).parameters["weights"].default is None
    slim = inspect.signature(applications.ResNet_v1_50).parameters
    published = registry.default_for("resnet_v1_50")
    assert (slim["weights"].default, slim["classes"].default) == ("imagenet", published.classes)


def test_unknown_function_suggests():
    with pytest.raises(AttributeError, match="Did you mean 'ResNet101V2'"):
        _ = applications.ResNet101v2


@pytest.mark.parametrize("name", ["resnet", "resnet50", "resnet_v2"])
def test_submodules_have_what_keras_has(name):
    theirs, ours = getattr(keras.applications, name), getattr(applications, name)
    assert isinstance(ours, types.ModuleType)
    public = {member for member in dir(theirs) if not member.startswith("_")}
    assert public <= set(dir(ours))
    assert ours.ResNet50 is applications.ResNet50 if name != "resnet_v2" else True


def test_imports_in_all_forms_and_without_keras():
    code = (
        "import sys\n"
        "from resfit.applications.resnet50 import ResNet50, preprocess_input\n"
        "from resfit.applications import resnet_v2, ResNet18\n"
        "import resfit.applications.resnet as resnet\n"
        "assert resnet.ResNet50 is ResNet50\n"
        "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# building


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ResNet50", {"input_shape": (64, 48, 3), "classes": 7}),
        ("ResNet50", {"include_top": False, "pooling": "max", "input_shape": (64, 48, 1)}),
        ("ResNet50V2", {"include_top": False}),
        ("ResNet50V2", {"input_shape": (32, 32, 3), "classes": 3, "classifier_activation": "sigmoid"}),
    ],
    ids=str,
)
def test_same_network_as_keras(name, options):
    built = []
    for module in (keras.applications, applications):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        built.append(getattr(module, name)(weights=None, **options))
    theirs, ours = built
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert (ours.name, ours.input_shape, ours.output_shape) == (theirs.name, theirs.input_shape, theirs.output_shape)
    randomize(theirs)
    ours.set_weights(theirs.get_weights())
    height, width, channels = options.get("input_shape", (40, 56, 3))
    x = np.random.default_rng(0).normal(0, 60, (2, height, width, channels)).astype("float32")
    assert relative_error(ours(x, training=False), theirs(x, training=False)) <= 1e-5


def test_input_tensor_and_its_predecessors():
    inputs = keras.Input((64, 64, 3))
    tensor = keras.layers.Rescaling(0.5)(inputs)
    model = applications.ResNet10Tiny(weights=None, include_top=False, input_tensor=tensor, pooling="avg")
    assert model.inputs[0] is inputs
    assert model.output_shape == (None, 320)


def test_contract_travels_with_the_network():
    model = applications.ResNet10Tiny(weights=None)
    assert model.architecture.classes == 200
    assert model.input_shape == (None, 64, 64, 3)
    assert model.input_spec.mean == TORCH.mean


BOTH = [
    {"weights": "imagnet"},
    {"weights": "none.h5"},
    {"classes": 10},
    {"input_shape": (200, 200, 3)},
    {"input_shape": (224, 224, 1)},
    {"include_top": False, "input_shape": (224, 224, 1)},
    {"include_top": False, "input_shape": (224, 224, 4)},
    {"classifier_activation": "relu"},
    {"weights": None, "input_shape": (31, 64, 3)},
    {"weights": None, "input_shape": (64, 31, 3), "include_top": False},
    {"weights": None, "input_shape": (64, 64)},
    {"weights": None, "input_shape": (None, None, 3)},
    {"weights": None, "input_shape": (None, 64, 3)},
]


@pytest.mark.parametrize("options", BOTH, ids=str)
def test_value_errors_under_the_same_conditions(options, monkeypatch):
    monkeypatch.setenv(fetch.OFFLINE, "1")
    # what Keras refuses before it would download anything
    fails = lambda *args, **kwargs: pytest.fail("no error")  # noqa: E731
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", fails)
    with pytest.raises(ValueError):  # noqa: PT011  # the texts of Keras are not ours
        keras.applications.ResNet50(**options)
    with pytest.raises(ArgumentError):
        applications.ResNet50(**options)


ACCEPTED = [
    {"include_top": False, "input_shape": (None, None, 3)},
    {"include_top": False, "input_shape": (32, None, 3), "pooling": "avg"},
    {"include_top": False, "input_shape": (32, 32, 1)},
    {"classes": 2, "input_shape": (32, 32, 3), "classifier_activation": "relu"},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
def test_accepted_as_by_keras(options):
    with shapes_alone():
        theirs = keras.applications.ResNet50(weights=None, **options)
        ours = applications.ResNet50(weights=None, **options)
    assert (ours.input_shape, ours.output_shape) == (theirs.input_shape, theirs.output_shape)


def test_unusual_channels_warn_as_keras_does():
    for module in (keras.applications, applications):
        with (
            shapes_alone(),
            pytest.warns(UserWarning, match="4 input channels|4 channels"),
        ):
            module.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 4))


def test_small_networks_take_smaller_images():
    assert applications.ResNet20(weights=None, input_shape=(8, 8, 3)).output_shape == (None, 10)
    with pytest.raises(ArgumentError, match="at least 4x4"):
        applications.ResNet20(weights=None, input_shape=(3, 8, 3))


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ArgumentError, match="channels_last"):
            applications.ResNet50(weights=None)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_published_weights_that_are_not_here(monkeypatch):
    monkeypatch.setenv(fetch.OFFLINE, "1")
    with pytest.raises(DownloadError, match=r"resnet50_weights_tf_dim_ordering_tf_kernels_notop\.h5"):
        applications.ResNet50(include_top=False)
    with pytest.raises(DownloadError, match=r"timm/resnet18\.a1_in1k"):
        applications.ResNet18()
    with pytest.raises(ValueError, match="no ImageNet weights of 'resnet56'"):
        applications.ResNet56(weights="imagenet")


def test_published_weights_of_another_library(tmp_path, monkeypatch):
    """Weights under timm's names, in a folder as Hugging Face's cache has it."""
    written = randomize(applications.ResNet18(weights=None))
    write.write(written, tmp_path / "timm", naming="timm")
    row = registry.get("resnet18.a1_in1k")
    monkeypatch.setattr(fetch, "fetch", lambda info, include_top: tmp_path / "timm" if info == row else None)
    received = applications.ResNet18()
    for expected, found in zip(written.get_weights(), received.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_from_a_path(tmp_path):
    model = randomize(applications.ResNet10Tiny(weights=None))
    keras_h5.write_layers(tmp_path / "tiny.h5", canonical.to_layers(model))
    again = applications.ResNet10Tiny(weights=str(tmp_path / "tiny.h5"), classifier_activation=None)
    for expected, received in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    with pytest.raises(ArgumentError, match="classifier_activation"):
        applications.ResNet10Tiny(weights=str(tmp_path / "tiny.h5"), classifier_activation="sigmoid")
    with pytest.raises(CheckpointError, match="must fit"):
        applications.ResNet10Tiny(weights=str(tmp_path / "tiny.h5"), classes=3)


# preprocessing


MODES = [("resnet", "resnet"), ("resnet50", "resnet50"), ("resnet_v2", "resnet_v2")]


@pytest.mark.parametrize(("ours", "theirs"), MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64"])
@pytest.mark.parametrize("data_format", [None, "channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [3, 4])
def test_preprocess_input_equals_keras(ours, theirs, dtype, data_format, rank):
    shape = (3, 5, 3)[3 - rank :] if rank == 3 else (2, 3, 5, 3)
    x = images(*shape).astype(dtype)
    before = x.copy()
    received = getattr(applications, ours).preprocess_input(x, data_format)
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(received, x)
    expected = getattr(keras.applications, theirs).preprocess_input(x.copy(), data_format)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(("ours", "theirs"), MODES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_preprocess_input_of_tensors_equals_keras(ours, theirs, dtype, data_format):
    x = tf.constant(images(2, 3, 5, 3).astype(dtype))
    received = getattr(applications, ours).preprocess_input(x, data_format)
    assert tf.is_tensor(received)
    expected = getattr(keras.applications, theirs).preprocess_input(x, data_format)
    np.testing.assert_array_equal(received, expected)


def test_torch_mode_equals_keras():
    from keras.src.applications import imagenet_utils

    x = images(2, 3, 5, 3).astype("float32")
    received = applications.ResNeXt50.preprocess_input(x)
    np.testing.assert_array_equal(received, imagenet_utils.preprocess_input(x.copy(), mode="torch"))
    assert applications.resnext.preprocess_input is applications.ResNeXt50.preprocess_input


def test_uint8_tensors_do_not_wrap():
    x = images(2, 3, 5, 3)
    expected = applications.resnet.preprocess_input(x)
    assert expected.min() < 0
    np.testing.assert_array_equal(applications.resnet.preprocess_input(tf.constant(x)), expected)


def test_lists_pictures_and_symbols():
    from PIL import Image

    x = images(4, 6, 3)
    expected = applications.resnet.preprocess_input(x)
    np.testing.assert_array_equal(applications.resnet.preprocess_input(x.tolist()), expected)
    np.testing.assert_array_equal(applications.resnet.preprocess_input(Image.fromarray(x)), expected)
    symbol = keras.Input((4, 6, 3), dtype="uint8")
    model = keras.Model(symbol, applications.resnet.preprocess_input(symbol))
    np.testing.assert_array_equal(model(x[None])[0], expected)


def test_preprocessing_of_other_rows_is_their_contract():
    x = images(2, 4, 4, 3)
    function = applications.ResNetV2_50x1_BiT
    np.testing.assert_allclose(function.preprocess_input(x), x / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(applications.ResNet18.preprocess_input(x), TORCH.normalize(x), atol=1e-6)


def test_preprocess_input_refuses():
    with pytest.raises(ArgumentError, match="data_format"):
        applications.resnet.preprocess_input(images(4, 4, 3), data_format="last")
    with pytest.raises(ArgumentError, match="3 channels on axis 3"):
        applications.resnet.preprocess_input(images(2, 4, 4, 1))


# labels


@pytest.fixture
def class_index(tmp_path):
    path = tmp_path / "models/imagenet_class_index.json"
    path.parent.mkdir()
    path.write_text(json.dumps({str(n): [f"n{n:08d}", f"label {n}"] for n in range(1000)}))
    return path


@pytest.mark.parametrize("top", [1, 5, 12])
def test_decode_predictions_equals_keras(class_index, top, monkeypatch):
    from keras.src.applications import imagenet_utils

    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", json.loads(class_index.read_text()))
    preds = np.random.default_rng(0).dirichlet(np.ones(1000), 3).astype("float32")
    preds[1] = 0.001  # ties
    expected = keras.applications.resnet.decode_predictions(preds, top=top)
    assert applications.decode_predictions(preds, top, class_index=class_index) == expected
    assert applications.resnet.decode_predictions(tf.constant(preds), top, class_index=class_index) == expected


@pytest.mark.parametrize("shape", [(1000,), (2, 10), (1, 1, 1000)])
def test_decode_predictions_of_another_shape(shape):
    with pytest.raises(ValueError, match="samples, 1000"):
        applications.decode_predictions(np.zeros(shape))


def test_the_published_index_comes_from_keras_cache(class_index, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv(fetch.OFFLINE, "1")
    applications._class_index.cache_clear()
    preds = np.eye(1000, dtype="float32")[[417]]
    with pytest.raises(DownloadError, match="c2c37ea517e94d9795004a39431a14cb"):
        applications.decode_predictions(preds, top=1)
    monkeypatch.setattr(applications, "_CLASS_INDEX_MD5", hashlib.md5(class_index.read_bytes()).hexdigest())
    assert applications.decode_predictions(preds, top=1) == [[("n00000417", "label 417", 1.0)]]
    applications._class_index.cache_clear()


# the two scripts of the issue, with only the import changed


def frozen_backbone(applications):
    base = applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    base.trainable = False
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    x = keras.layers.Dense(1024, activation="relu")(x)
    return keras.Model(base.input, keras.layers.Dense(10, activation="softmax")(x))


def fine_tuned(applications):
    base = applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=20)
    for layer in base.layers[:140]:
        layer.trainable = False
    for layer in base.layers[140:]:
        layer.trainable = True
    return keras.Model(base.input, keras.layers.Dense(10, activation="softmax")(base.layers[-2].output))


@pytest.mark.parametrize("script", [pytest.param(frozen_backbone, marks=pytest.mark.slow), fine_tuned])
def test_scripts_run_with_only_the_import_changed(script):
    results = []
    x, y = images(8, 32, 32, 3).astype("float32"), np.arange(8) % 10
    for module in (keras.applications, applications):
        keras.utils.clear_session()
        keras.utils.set_random_seed(11)
        model = script(module)
        model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
        history = model.fit(module.resnet50.preprocess_input(x.copy()), y, batch_size=4, epochs=1, verbose=0)
        results.append((history.history["loss"][0], len(model.trainable_weights), model.get_weights()))
    theirs, ours = results
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)
    for received, expected in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
