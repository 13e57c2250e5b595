"""The layer in Keras 3, beyond what the original can show: weights, saving, trust, shapes, strategies."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfit import hub
from resfit.errors import ArgumentError, CheckpointError
from resfit.hub import layer as layer_module

ROOT = Path(__file__).parents[2]
X = np.linspace(-1, 1, 8, dtype="float32")[:, None]


def _model(folder, trainable=True, **kwargs):
    keras.utils.set_random_seed(3)
    layer = hub.KerasLayer(folder, trainable=trainable, **kwargs)
    model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model, layer


def _fit(model, epochs=2):
    model.fit(X, np.hstack([X, -X]), batch_size=4, shuffle=False, epochs=epochs, verbose=0)


def _reading_files(folder, name="ReadFile"):
    """A SavedModel whose call reads the file that its input names."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(tf.io.read_file, input_signature=[tf.TensorSpec((), tf.string)])
    tf.saved_model.save(obj, os.fspath(folder))
    return os.fspath(folder)


# ---- weights


def test_weights_are_the_variables_of_the_saved_model(folders):
    layer = hub.KerasLayer(folders["batch_norm"], trainable=True)
    own = list(layer.resolved_object.variables)
    assert [weight.value is variable for weight, variable in zip(layer.weights, own, strict=True)] == [True] * 4
    layer(tf.constant([[10.0], [20.0]]), training=True)  # the SavedModel moves its own mean: 0.2 * 15
    np.testing.assert_allclose(layer.weights[2].numpy(), [3.0], rtol=1e-6)
    layer.weights[0].assign([7.0])
    assert own[0].numpy() == [7.0]
    assert [weight.name for weight in layer.weights] == ["beta", "gamma", "moving_mean", "moving_variance"]


def test_published_list_decides_what_is_trained(folders):
    layer = hub.KerasLayer(folders["flags"], trainable=True)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    assert [weight.name for weight in layer.trainable_weights] == ["off"]
    _ = model.train_on_batch(np.ones((2, 1), "float32"), np.zeros((2, 1), "float32"))
    # loss = mean((off + on)^2) = 25, d/d off = 10
    np.testing.assert_allclose([w.numpy()[0] for w in (*layer.trainable_weights, *layer.non_trainable_weights)], [1, 3])


def test_two_layers_of_one_handle_are_independent(folders):
    one, two = hub.KerasLayer(folders["half_plus_one"]), hub.KerasLayer(folders["half_plus_one"])
    one.weights[0].assign([[9.0]])
    np.testing.assert_allclose(two(X), 0.5 * X + 1)


def test_trainable_moves_weights_and_losses_of_the_whole_model(folders):
    inner, layer = _model(folders["half_plus_one"], trainable=False)
    outer = keras.Sequential([keras.Input((1,)), inner])
    counts = []
    for trainable in (True, False, True):
        layer.trainable = trainable
        counts.append((len(outer.trainable_weights), len(outer.non_trainable_weights), float(sum(outer.losses))))
    np.testing.assert_allclose(counts, [(3, 1, 0.0125), (2, 2, 0.0), (3, 1, 0.0125)], rtol=1e-6)
    outer.trainable = False
    assert outer.losses == []


def test_regularization_reaches_the_gradient(folders):
    layer = hub.KerasLayer(folders["half_plus_one"], trainable=True)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: 0.0 * p)
    model.train_on_batch(X, X)
    # 0.5 - d/dw (0.01 w^2 + 0.02 |w|)
    np.testing.assert_allclose(layer.trainable_weights[0].numpy(), [[0.5 - 0.01 - 0.02]], rtol=1e-5)


def test_training_is_always_a_python_bool():
    seen = []

    class Callable:
        trainable_variables = (tf.Variable(1.0),)
        variables = trainable_variables

        def __call__(self, x, training=None):
            seen.append(training)
            return x

    model = keras.Sequential([keras.Input((1,)), hub.KerasLayer(Callable(), trainable=True)])
    model(X)
    model(X, training=True)
    model.layers[0].trainable = False
    model(X, training=True)
    assert all(type(value) is bool for value in seen)
    assert seen[-3:] == [False, True, False]


def test_nothing_to_train_is_said_once(folders):
    layer = hub.KerasLayer(folders["hyper_parameters"], trainable=True)
    with pytest.warns(UserWarning, match="publishes no trainable variables"):
        layer(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(X)


# ---- inputs and shapes


def test_the_layer_is_one_of_keras_with_the_arguments_of_the_original():
    names = list(inspect.signature(hub.KerasLayer).parameters)
    assert names[:5] == ["handle", "trainable", "arguments", "tags", "signature"]
    assert names[5:9] == ["signature_outputs_as_dict", "output_key", "output_shape", "load_options"]
    assert issubclass(hub.KerasLayer, keras.layers.Layer)
    assert keras.saving.get_registered_name(hub.KerasLayer) == "resfit>KerasLayer"


def test_scalars(folders):
    layer = hub.KerasLayer(folders["scalars"])
    assert layer.compute_output_shape(()) == {"half": ((),), "twice": ()}
    spec = layer.compute_output_spec(keras.KerasTensor((), "float32"))
    assert (spec["twice"].shape, spec["half"][0].shape, spec["twice"].dtype) == ((), (), "float32")
    assert float(layer(tf.constant(3.0))["twice"]) == 6.0
    assert float(layer(3.0)["half"][0]) == 1.5


def test_plain_python_values_become_one_tensor(folders):
    np.testing.assert_allclose(hub.KerasLayer(folders["half_plus_one"])([[2.0], [4.0]]), [[2.0], [3.0]])
    assert hub.KerasLayer(folders["strings"])(["one", "three"])["length"].numpy().tolist() == [3, 5]


def test_shapes_of_nests_are_traced(folders):
    inputs = {"a": keras.Input((2,)), "b": [keras.Input((2,)), keras.Input((), dtype="int64")]}
    out = hub.KerasLayer(folders["nests"])(inputs)
    assert (out["list"][0].shape, out["list"][1].shape, out["row"].shape) == ((None, 2), (None,), (None,))
    assert (out["list"][1].dtype, out["row"].dtype) == ("int64", "float32")
    shapes = hub.KerasLayer(folders["nests"]).compute_output_shape({"a": (5, 2), "b": [(5, 2), (5,)]})
    assert shapes == {"list": [(5, 2), (5,)], "row": (5,)}


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_sparse_and_ragged_inputs_of_a_model(folders, kind):
    if kind == "sparse":
        inputs = keras.Input((4,), sparse=True)
        model = keras.Model(inputs, hub.KerasLayer(folders["composites"])(inputs))
        found = model(tf.sparse.from_dense([[1.0, 0, 0, 2.0], [0, 0, 3.0, 0]]))
        assert model.output_shape == (None,)
        np.testing.assert_allclose(found, [3.0, 3.0])
    else:
        inputs = keras.Input((None,), ragged=True)
        model = keras.Model(inputs, hub.KerasLayer(folders["ragged"])(inputs))
        assert model.output.ragged
        found = model(tf.ragged.constant([[1.0, 8.0], [3.0]]))
        assert found.to_list() == [[2.0, 16.0], [6.0]]


def test_output_shape_scalar_and_nested(folders):
    layer = hub.KerasLayer(folders["one_shapeless"], output_shape=())
    assert layer.compute_output_shape((7, 3)) == (7,)
    assert layer(keras.Input((3,))).shape == (None,)
    nested = hub.KerasLayer(folders["shapeless"], output_shape={"matrix": [3], "vector": []})
    assert nested.compute_output_shape((None, 3)) == {"matrix": (None, 3), "vector": (None,)}
    out = nested(keras.Input((3,)))
    assert (out["matrix"].shape, out["vector"].shape) == ((None, 3), (None,))
    again = hub.KerasLayer.from_config(json.loads(json.dumps(nested.get_config())))
    assert again.compute_output_shape((2, 3)) == {"matrix": (2, 3), "vector": (2,)}


def test_a_shape_that_is_not_told_is_asked_for(folders):
    with pytest.raises(ArgumentError, match="output_shape"):
        hub.KerasLayer(folders["one_shapeless"])(keras.Input((3,)))
    np.testing.assert_allclose(hub.KerasLayer(folders["one_shapeless"])(tf.ones((2, 3))), [3.0, 3.0])


def test_input_shape_builds_a_sequential_model(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = keras.Sequential([hub.KerasLayer(folders["half_plus_one"], input_shape=(1,)), keras.layers.Dense(3)])
    assert model.output_shape == (None, 3)
    text = keras.Sequential(
        [hub.KerasLayer(folders["vocabulary"], input_shape=[], dtype=tf.string, trainable=True), keras.layers.Dense(1)]
    )
    text.compile(keras.optimizers.SGD(0.01), "mse")
    text.fit(tf.constant(["red", "blue"]), tf.ones((2, 1)), verbose=0)
    assert text.output_shape == (None, 1)


# ---- configurations


def test_configuration_keeps_tags_and_is_json(folders):
    layer = hub.KerasLayer(
        folders["meta_graphs"], tags={"train", "serve"}, signature="serving_default", output_key="y", name="three"
    )
    config = json.loads(json.dumps(layer.get_config()))
    again = hub.KerasLayer.from_config(config)
    np.testing.assert_allclose(again(X), 3 * X, rtol=1e-6)
    assert again.get_config() == layer.get_config()
    assert {"trust", "embed_saved_model", "load_options", "archived"}.isdisjoint(config)


def test_clone_has_variables_of_its_own(folders):
    model, layer = _model(folders["half_plus_one"])
    _fit(model)
    clone = keras.models.clone_model(model)
    np.testing.assert_allclose(clone.layers[0].get_weights()[0], [[0.5]])
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(X), model(X))
    assert clone.layers[0].weights[0].value is not layer.weights[0].value


# ---- saving


@pytest.mark.parametrize("original", ["there", "gone", "changed"])
def test_archive_keeps_trained_weights_and_optimizer(folders, tmp_path, original):
    place = shutil.copytree(folders["half_plus_one"], tmp_path / "module")
    model, _ = _model(os.fspath(place))
    _fit(model)
    model.save(tmp_path / "m.keras")
    if original != "there":
        shutil.rmtree(place)
    if original == "changed":
        shutil.copytree(folders["batch_norm"], place)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for one in (model, loaded):
        _fit(one)
    np.testing.assert_allclose(loaded.get_weights()[0], model.get_weights()[0], rtol=1e-6)
    assert loaded.layers[0].weights[0].value is loaded.layers[0].resolved_object.variables[0]
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-6)
    loaded.save(tmp_path / "again.keras")  # and once more
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again.predict(X, verbose=0), loaded.predict(X, verbose=0))
    np.testing.assert_allclose(keras.models.clone_model(again).layers[0](X), 0.5 * X + 1)
    assert json.loads(zipfile.ZipFile(tmp_path / "again.keras").read("config.json"))  # plain JSON
    assert os.fspath(place) in zipfile.ZipFile(tmp_path / "again.keras").read("config.json").decode()


def _text(folder):
    words = keras.Input((), dtype="string")
    return keras.Model(words, keras.layers.Dense(2)(hub.KerasLayer(folder, trainable=True)(words)))


def _pair(folder):
    left, right = keras.Input((3,)), keras.Input((3,))
    return keras.Model([left, right], hub.KerasLayer(folder)([left, right]))


def _v1(folder):
    images = keras.Input((4, 4, 3))
    return keras.Model(images, hub.KerasLayer(folder)(images))


def _fitted(folder, **options):
    """What it has learned is not what the SavedModel holds."""
    model, _ = _model(folder, **options)
    _fit(model)
    return model


def test_archives_in_another_process(folders, tmp_path):
    """Without the SavedModels and with them, in safe mode; and under MirroredStrategy with two logical CPUs."""

    def copy(place, name):
        return os.fspath(shutil.copytree(folders[name], tmp_path / place / name))

    words = [np.array(["blue", "red", "other"], object)]
    models = {
        "plain": (_fitted(copy("gone", "half_plus_one")), [X]),
        "text": (_text(copy("gone", "vocabulary")), words),
        "pair": (_pair(copy("gone", "pair")), [np.ones((2, 3)), np.eye(2, 3)]),
        "v1": (_v1(copy("gone", "v1_module")), [np.random.rand(2, 4, 4, 3)]),
        "plain there": (_fitted(kept := copy("there", "half_plus_one")), [X]),
        "without it": (_fitted(kept, embed_saved_model=False), [X]),
        "text there": (_text(copy("there", "vocabulary")), words),
    }
    expected, inputs = {}, {}
    for name, (model, given) in models.items():
        model.save(tmp_path / f"{name}.keras")
        found = model([tf.constant(x) for x in given] if len(given) > 1 else tf.constant(given[0]))
        expected[name] = np.concatenate([np.ravel(array) for array in tf.nest.flatten(found)]).tolist()
        inputs[name] = [x.tolist() for x in given]
    _fit(models["plain"][0])
    expected["fitted"] = np.concatenate([np.ravel(w) for w in models["plain"][0].get_weights()]).tolist()
    dense = keras.layers.Dense(2, kernel_initializer="ones")
    alone = keras.Sequential([keras.Input((1,)), hub.KerasLayer(folders["half_plus_one"], trainable=True), dense])
    alone.compile(keras.optimizers.SGD(0.05), "mse")
    _fit(alone)
    expected["mirrored"] = np.concatenate([np.ravel(w) for w in alone.get_weights()]).tolist()
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    command = [sys.executable, "-m", "tests.hub.elsewhere", os.fspath(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_archive_without_the_saved_model(folders, tmp_path):
    place = shutil.copytree(folders["half_plus_one"], tmp_path / "module")
    model, _ = _model(os.fspath(place), embed_saved_model=False)
    _fit(model)
    model.save(tmp_path / "m.keras")
    assert not any("saved_model" in name for name in zipfile.ZipFile(tmp_path / "m.keras").namelist())
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    shutil.rmtree(place)
    with pytest.raises(OSError, match="must exist"):
        keras.saving.load_model(tmp_path / "m.keras")


def test_large_saved_models_do_not_travel_unless_told_to(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_module, "MOST_EMBEDDED", 1000)
    for embed, expected in ((None, False), (True, True)):
        model, _ = _model(folders["half_plus_one"], embed_saved_model=embed)
        model.save(tmp_path / "m.keras")
        names = zipfile.ZipFile(tmp_path / "m.keras").namelist()
        assert any(name.endswith("saved_model.pb") for name in names) is expected


def test_weights_file(folders, tmp_path):
    model, _ = _model(folders["half_plus_one"])
    _fit(model)
    model.save_weights(tmp_path / "m.weights.h5")
    other, layer = _model(folders["half_plus_one"])
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other(X), model(X))
    np.testing.assert_array_equal(layer.resolved_object.variables[0], model.get_weights()[0])


@keras.saving.register_keras_serializable(package="tests.hub")
class Subclassed(keras.Model):
    def __init__(self, folder, **kwargs):
        super().__init__(**kwargs)
        self.folder = folder
        self.features = hub.KerasLayer(folder, trainable=True)
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(self.features(x))

    def get_config(self):
        return {**super().get_config(), "folder": self.folder}


def test_subclassed_model(folders, tmp_path):
    model = Subclassed(folders["half_plus_one"])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    _fit(model)
    assert len(model.trainable_weights) == 3
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_inside_a_wrapper(folders, tmp_path):
    clips = keras.Input((5, 1))
    model = keras.Model(
        clips, keras.layers.TimeDistributed(hub.KerasLayer(folders["half_plus_one"], trainable=True))(clips)
    )
    assert model.output_shape == (None, 5, 1)
    assert len(model.trainable_weights) == 1
    x = np.random.default_rng(0).random((2, 5, 1), "float32")
    np.testing.assert_allclose(model(x), 0.5 * x + 1, rtol=1e-6)
    model.trainable_weights[0].assign([[2.0]])
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "m.keras")(x), 2 * x + 1, rtol=1e-6)


def test_a_keras_network_as_handle():
    network = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    layer = hub.KerasLayer(network)
    model = keras.Sequential([keras.Input((1,)), layer])
    before = [np.array(weight) for weight in network.weights]
    model(X, training=True)
    model.compile("sgd", "mse")
    _fit(model)
    np.testing.assert_equal([np.array(weight) for weight in network.weights], before)
    layer.trainable = True
    assert len(layer.weights) == len(network.weights)
    assert len(layer.trainable_weights) == 4
    model.compile("sgd", "mse")
    _fit(model)
    assert all(np.any(np.array(w) != old) for w, old in zip(network.weights, before, strict=True))


def test_saving_after_the_saved_model_is_gone_is_said(folders, tmp_path):
    place = shutil.copytree(folders["half_plus_one"], tmp_path / "module")
    model, _ = _model(os.fspath(place))
    shutil.rmtree(place)
    with pytest.warns(UserWarning, match="no longer there"):
        model.save(tmp_path / "m.keras")


def test_a_configuration_of_an_archive_alone_says_what_it_lacks(folders, tmp_path):
    model, _ = _model(folders["half_plus_one"])
    model.save(tmp_path / "m.keras")
    config = json.loads(zipfile.ZipFile(tmp_path / "m.keras").read("config.json"))
    alone = keras.saving.deserialize_keras_object(config)
    with pytest.raises(CheckpointError, match=r"keras\.saving\.load_model"):
        alone(X)


@pytest.mark.parametrize("damage", ["missing", "other variables"])
def test_damaged_archive(folders, tmp_path, damage):
    model, _ = _model(folders["half_plus_one"])
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as source, zipfile.ZipFile(tmp_path / "bad.keras", "w") as target:
        inside = {name: source.read(name) for name in source.namelist()}
        for name, data in inside.items():
            if "/saved_model/" not in name:
                target.writestr(name, data)
        if damage == "other variables":
            base = next(name for name in inside if name.endswith("saved_model.pb")).removesuffix("saved_model.pb")
            other = Path(folders["batch_norm"])
            for path in other.rglob("*"):
                if path.is_file():
                    target.write(path, base + path.relative_to(other).as_posix())
    with pytest.raises(ValueError, match="has not got it yet" if damage == "missing" else "must have the variables"):
        keras.saving.load_model(tmp_path / "bad.keras")(X)


# ---- trust


def test_a_saved_model_that_reads_files_asks_for_trust(tmp_path):
    place = _reading_files(tmp_path / "reads")
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(CheckpointError, match=r"ReadFile.*trust=True"):
        hub.KerasLayer(place)
    with pytest.raises(CheckpointError, match="ReadFile"):
        hub.load(place)
    layer = hub.KerasLayer(place, trust=True)
    assert layer(tf.constant(os.fspath(tmp_path / "secret"))).numpy() == b"secret"
    assert hub.KerasLayer.from_config(layer.get_config())(tf.constant(os.fspath(tmp_path / "secret"))) == b"secret"


def test_an_archive_does_not_vouch_for_itself(tmp_path):
    place = _reading_files(tmp_path / "reads")
    inputs = keras.Input(batch_shape=(), dtype="string")
    for embed in (True, False):
        keras.Model(inputs, hub.KerasLayer(place, trust=True, embed_saved_model=embed)(inputs)).save(
            tmp_path / "m.keras"
        )
        for handle in (place, "https://tfhub.dev/google/harmless/1"):  # a known publisher's name, in the archive only
            if handle != place and not embed:
                continue
            _with_handle(tmp_path / "m.keras", tmp_path / "bad.keras", place, handle)
            with pytest.raises(ValueError, match="ReadFile"):
                keras.saving.load_model(tmp_path / "bad.keras")
            loaded = keras.saving.load_model(tmp_path / "bad.keras", safe_mode=False)
            assert loaded(tf.constant(os.fspath(tmp_path / "reads" / "fingerprint.pb"))).numpy()


def _with_handle(source, target, old, new):
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            other.writestr(name, data.replace(old.encode(), new.encode()) if name == "config.json" else data)


# ---- programs around it


def test_mixed_precision_leaves_the_saved_model_alone(folders, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, layer = _model(folders["half_plus_one"])
        np.testing.assert_array_equal(layer(np.full((1, 1), 1.0001, "float32")), [[np.float32(1.0001) * 0.5 + 1]])
        _fit(model)
        assert {weight.dtype for weight in model.weights} == {"float32"}
        assert model(X).dtype == "float16"
        assert layer.get_weights()[0] != 0.5
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    finally:
        keras.config.set_dtype_policy("float32")


def test_xla_only_where_it_can(folders):
    model, layer = _model(folders["half_plus_one"])
    assert layer.supports_jit
    other, _ = _model(folders["half_plus_one"])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    other.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    for one in (model, other):
        _fit(one)
    np.testing.assert_allclose(model.get_weights()[0], other.get_weights()[0], rtol=1e-5)
    assert not hub.KerasLayer(folders["vocabulary"]).supports_jit
    assert not hub.KerasLayer(folders["strings"]).supports_jit


def test_export(folders, tmp_path):
    model, _ = _model(folders["half_plus_one"])
    _fit(model)
    model.export(tmp_path / "out", verbose=False)
    exported = tf.saved_model.load(tmp_path / "out")
    np.testing.assert_allclose(exported.serve(X), model(X), rtol=1e-6)
    words = keras.Input((), dtype="string")
    text = keras.Model(words, hub.KerasLayer(folders["vocabulary"], trainable=True)(words))
    text.export(tmp_path / "text", verbose=False)
    shutil.move(tmp_path / "text", tmp_path / "moved")  # its asset went with it
    moved = tf.saved_model.load(tmp_path / "moved")
    np.testing.assert_allclose(moved.serve(tf.constant(["blue"])), [[5.0, 6.0]])
