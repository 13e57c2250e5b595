"""The table of TensorFlow Hub's residual networks, and what a layer knows of its handle."""

from __future__ import annotations

import hashlib
import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import resfit
from resfit import hub
from resfit.errors import CheckpointError, UnknownNameError
from resfit.hub import handles, models

V2_50 = "https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5"


def test_every_row_is_whole():
    rows = hub.list_models()
    assert len(rows) > 80
    assert len({handles.canonical(row.handle) for row in rows}) == len(rows)
    for row in rows:
        assert row.handle.startswith("https://tfhub.dev/"), row
        assert row.value_range in ((0.0, 1.0), (-1.0, 1.0)), row
        assert row.outputs > 1, row
        assert (row.native, row.format) != (True, "TF1 Hub format") or "@" in row.name, row
        assert models.value_range(row.input_spec) == pytest.approx(row.value_range), row
        assert row.task == ("classification" if "classification" in row.handle else "feature vector"), row
        assert hub.describe(row.handle) is row
        assert hub.describe(row.name) is row


@pytest.mark.parametrize(
    ("pattern", "outputs", "background", "value_range"),
    [
        ("resnet_v2_50.tfhub", 1001, True, (0.0, 1.0)),
        ("resnet_v2_50.tfhub_features", 2048, False, (0.0, 1.0)),
        ("bit_m_r50x1.tfhub_in21k", 21843, False, (0.0, 1.0)),
        ("bit_m_r152x4.tfhub_features", 8192, False, (0.0, 1.0)),
        ("bit_r50x1_distilled_224.tfhub", 1000, False, (-1.0, 1.0)),
    ],
)
def test_known_figures(pattern, outputs, background, value_range):
    (row,) = hub.list_models(pattern)
    assert (row.outputs, row.background, row.value_range) == (outputs, background, value_range)


def test_formats_and_versions():
    """As the pages of the modules say."""
    formats = {row.handle.removeprefix("https://tfhub.dev/google/"): row.format for row in hub.list_models()}
    for path, expected in {
        **{f"imagenet/resnet_v{n}_152/classification/{v}": "TF1 Hub format" for n in (1, 2) for v in (1, 3)},
        **{f"imagenet/resnet_v{n}_101/feature_vector/{v}": "TF2 SavedModel" for n in (1, 2) for v in (4, 5)},
        "remote_sensing/so2sat-ms-resnet50/1": "TF1 Hub format",
        "supcon/resnet_v1_200/imagenet/classification/1": "TF1 Hub format",
        "experts/bit/r50x1/in21k/bird/1": "TF2 SavedModel",
    }.items():
        assert formats[path] == expected, path
    assert sum("/imagenet/resnet" in row.handle for row in hub.list_models()) == 6 * 2 * 4
    channels = {row.name: (row.channels, row.outputs) for row in hub.list_models("*resnet50.tfhub_features")}
    assert channels["remote_sensing_eurosat_ms_resnet50.tfhub_features"] == (13, 2048)
    assert channels["remote_sensing_so2sat_ms_resnet50.tfhub_features"] == (10, 2048)
    assert channels["remote_sensing_uc_merced_resnet50.tfhub_features"] == (3, 2048)
    (earlier,) = hub.list_models("resnet_v2_50.tfhub_features@3")
    assert hub.describe("https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/3") is earlier
    assert earlier.mirror == ""


def test_parameters_are_those_of_the_network():
    (row,) = hub.list_models("resnet_v2_50.tfhub")
    # 25,613,800 of the published ResNet v2 50 with 1000 classes, and 2,049 more for the background
    assert row.parameters == 25_613_800 + 2_049
    assert hub.list_models("bit_s_r50x1.tfhub_features")[0].parameters > 23_000_000


def test_patterns():
    names = [row.name for row in hub.list_models("resnet_v1_*")]
    assert names
    assert all(name.startswith("resnet_v1_") for name in names)
    assert hub.list_models("https://tfhub.dev/google/bit/m-r50x1/*")
    assert hub.list_models("nothing*") == []
    assert hub.list_models("resnet*") == hub.list_models()  # every one is a ResNet


def test_describe_takes_every_form_of_a_handle():
    row = hub.describe(V2_50)
    for form in (
        "http://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5",
        V2_50 + "?tf-hub-format=compressed",
        "https://www.kaggle.com/models/google/resnet-v2/TensorFlow2/50-feature-vector/2",
        "https://kaggle.com/models/google/resnet-v2/frameworks/tensorFlow2/variations/50-feature-vector/versions/2",
        "kaggle://google/resnet-v2/tensorFlow2/50-feature-vector/2",
    ):
        assert hub.describe(form) is row
    with pytest.raises(UnknownNameError, match=r"Did you mean 'resnet_v2_50\.tfhub'"):
        hub.describe("resnet_v2_50.tfhubb")
    assert row.to_dict()["input_size"] == [224, 224]


@pytest.fixture
def cached(folders, tmp_path, monkeypatch):
    """A cache that holds a small SavedModel under the handle of a large one, as tensorflow_hub would have put it."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    for handle in (V2_50, "https://tfhub.dev/sayakpaul/bit_resnet152x2_224_classification/1"):
        shutil.copytree(folders["resnet"], tmp_path / hashlib.sha1(handle.encode()).hexdigest())


def test_a_layer_knows_its_input(cached):
    layer = hub.KerasLayer(V2_50)
    assert layer.input_spec.size == (224, 224)
    np.testing.assert_allclose(layer.input_spec.normalize(np.full((1, 1, 3), 255.0)), 1.0)
    with pytest.raises(ValueError, match="expected axis -1"):
        layer(np.zeros((1, 32, 32, 4), "float32"))


@pytest.mark.parametrize(
    ("handle", "low", "high", "warned"),
    [
        (V2_50, 0.0, 1.0, False),
        (V2_50, -0.2, 1.2, False),  # resized with an overshoot
        (V2_50, 0.0, 255.0, True),
        (V2_50, -1.0, 1.0, True),
        ("https://tfhub.dev/sayakpaul/bit_resnet152x2_224_classification/1", -1.0, 1.0, False),
        ("https://tfhub.dev/sayakpaul/bit_resnet152x2_224_classification/1", 0.0, 255.0, True),
    ],
)
def test_a_wrong_range_is_said_once(cached, handle, low, high, warned):
    layer = hub.KerasLayer(handle)
    images = np.random.default_rng(0).uniform(low, high, (2, 32, 32, 3)).astype("float32")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tf.function(layer)(tf.constant(images))  # no values there
        layer(images)
        layer(images)
    assert [str(one.message).count("takes values") for one in seen if one.category is UserWarning] == [1] * warned


@pytest.mark.parametrize("what", ["fit", "evaluate", "predict", "predict_on_batch", "several steps", "xla"])
def test_a_wrong_range_is_said_in_the_loops_of_keras(cached, what, tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    model = keras.Sequential([keras.Input((32, 32, 3)), hub.KerasLayer(V2_50), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=2 if what == "several steps" else 1, jit_compile=what == "xla")
    run = {"several steps": model.fit, "xla": model.fit}.get(what) or getattr(model, what)
    more = {} if "predict" in what else {"y": np.zeros((4, 1))}
    more |= {} if what == "predict_on_batch" else {"batch_size": 2, "verbose": 0}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(images, **more)
        run(images, **more)
        model.export(tmp_path / "out", verbose=False)  # what looks at values stays behind
    said = [str(one.message) for one in seen if "takes values" in str(one.message)]
    assert len(said) == (what != "xla"), said
    assert all("0..1. Received: 0." in one and "..25" in one for one in said)
    assert "PyFunc" not in str(tf.saved_model.load(tmp_path / "out").serve.get_concrete_function().graph.as_graph_def())


# ---- native networks


@pytest.mark.parametrize("include_top", [True, False])
def test_a_saved_model_becomes_a_native_network(tmp_path, include_top):
    network = resfit.load(
        "resnet10_tiny", weights=None, classes=7, include_top=include_top, pooling="avg", preprocess=False, seed=0
    )
    generator = np.random.default_rng(0)
    for weight in network.weights:  # statistics that are not those of a fresh network
        if "moving" in weight.path or weight.name in ("gamma", "beta"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    folder = str(hub.publish(network, tmp_path / "m"))
    more = {} if include_top else {"pooling": "avg"}
    native = hub.to_keras(folder, architecture="resnet10_tiny", include_top=include_top, preprocess=False, **more)
    images = generator.uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(native(images), hub.KerasLayer(folder)(images), rtol=1e-4, atol=1e-4)
    assert native.architecture.depths == network.architecture.depths
    native.get_layer("conv2_block1_1_conv").trainable = False
    assert len(native.trainable_weights) == len(network.trainable_weights) - 1


def test_what_is_no_residual_network_is_offered_as_a_layer(folders):
    with pytest.raises(CheckpointError, match=r"resfit\.hub\.KerasLayer\("):
        hub.to_keras(folders["half_plus_one"])
    with pytest.raises(OSError, match="must exist"):
        hub.to_keras(folders["half_plus_one"] + "-missing")
