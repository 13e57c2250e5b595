"""What code does with a hub, the same for ``tensorflow_hub`` under Keras 2 and ``resfit.hub`` under Keras 3.

Each case is called with the hub, the Keras that belongs to it, and the folders of :mod:`tests.hub.saved_models`; it
returns arrays by name. :mod:`tests.hub.original` runs them in a process of the original.
"""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

CASES = {}
#: Cases that only tell which exception comes.
ERRORS = {}


def case(function):
    CASES[function.__name__] = function
    return function


def error(function):
    ERRORS[function.__name__] = function
    return function


def _column(*values):
    return np.array([[value] for value in values], "float32")


def _total(losses):
    return np.array(sum((float(loss) for loss in losses), 0.0), "float32")


def _trained(model, x, y, steps=5, rate=0.05):
    """Takes steps of plain gradient descent, one at a time; returns the loss before each."""
    optimizer = model_optimizer(rate)
    model.compile(optimizer, "mse")
    return np.array([model.train_on_batch(x, y) for _ in range(steps)], "float32").reshape(steps)


def model_optimizer(rate):
    return _trained.keras.optimizers.SGD(rate)


def _dense(keras, units, value=0.5, **kwargs):
    return keras.layers.Dense(units, kernel_initializer=keras.initializers.Constant(value), **kwargs)


@case
def half_plus_one(hub, keras, folders):
    layer = hub.KerasLayer(folders["half_plus_one"], trainable=True)
    model = keras.Sequential([keras.Input((1,)), layer])
    before, regularized = model(_column(0, 8, 10, 12)), _total(model.losses)
    losses = _trained(model, _column(9, 10, 11), _column(10, 11, 12), rate=0.002)
    return {
        "before": before,
        "regularized": regularized,
        "losses": losses,
        "after": model(_column(0, 10)),
        "trainable": layer.trainable_weights[0],
        "frozen": layer.non_trainable_weights[0],
        "counts": [len(layer.trainable_weights), len(layer.non_trainable_weights), len(layer.weights)],
        "regularized_after": _total(model.losses),
    }


@case
def half_plus_one_by_fit(hub, keras, folders):
    model = keras.Sequential(
        [keras.Input((1,)), hub.KerasLayer(folders["half_plus_one"], trainable=True), _dense(keras, 2)]
    )
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x = np.linspace(-1, 1, 16, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((x, np.hstack([x, -x]))).batch(4)
    history = model.fit(data, epochs=3, verbose=0)
    return {"losses": history.history["loss"], "weights": np.concatenate([np.ravel(w) for w in model.get_weights()])}


@case
def regularization_follows_trainable(hub, keras, folders):
    layer = hub.KerasLayer(folders["half_plus_one"])
    model = keras.Sequential([keras.Input((1,)), layer])
    model(_column(1))
    seen = []
    for trainable in (False, True, False, True):
        layer.trainable = trainable
        seen.append(_total(model.losses))
    return {"seen": seen}


@case
def frozen_layer_stays(hub, keras, folders):
    layer = hub.KerasLayer(folders["half_plus_one"], trainable=False)
    model = keras.Sequential([keras.Input((1,)), layer, _dense(keras, 1)])
    losses = _trained(model, _column(1, 2, 3), _column(4, 5, 6), rate=0.01)
    return {
        "losses": losses,
        "hub": np.concatenate([np.ravel(w) for w in layer.get_weights()]),
        "all": model(_column(1)),
    }


@case
def batch_norm_retrained(hub, keras, folders):
    layer = hub.KerasLayer(folders["batch_norm"], trainable=True)
    model = keras.Sequential([keras.Input((1,)), layer])
    losses = _trained(model, _column(11, 12, 13), _column(22, 24, 26), rate=0.1)
    named = {v.name.split(":")[0]: v.numpy() for v in layer.resolved_object.variables}
    return {"losses": losses, "evaluated": model(_column(10, 20, 30)), "again": model(_column(10, 20, 30)), **named}


@case
def batch_norm_frozen(hub, keras, folders):
    layer = hub.KerasLayer(folders["batch_norm"], trainable=False)
    model = keras.Sequential([keras.Input((1,)), layer, _dense(keras, 1, 1.5, use_bias=False)])
    losses = _trained(model, _column(1, 2, 3), _column(2, 4, 6), rate=0.1)
    named = {v.name.split(":")[0]: v.numpy() for v in layer.resolved_object.variables}
    return {"losses": losses, "direct": layer(_column(1, 2, 3), training=True), **named}


@case
def batch_norm_toggled(hub, keras, folders):
    layer = hub.KerasLayer(folders["batch_norm"], trainable=True)
    x, out = _column(1, 2, 4), []
    for trainable, training in ((True, True), (True, False), (False, True), (True, None), (True, True)):
        layer.trainable = trainable
        out.append(np.array(layer(x, training=training)))
    return {"out": out, "mean": layer.resolved_object.variables[2]}


@case
def custom_attributes(hub, keras, folders):
    layer = hub.KerasLayer(folders["attributes"])
    path = layer.resolved_object.sample_input.asset_path.numpy()
    with tf.io.gfile.GFile(path) as file:
        text = tf.constant([[file.read()]])
    return {"parsed": layer(text), "expected": layer.resolved_object.sample_output}


@case
def vocabulary(hub, keras, folders):
    layer = hub.KerasLayer(folders["vocabulary"], trainable=True, dtype=tf.string)
    words = tf.constant(["blue", "red", "none"])
    model = keras.Sequential([layer, _dense(keras, 1)])
    before = layer(words)
    losses = _trained(model, words, _column(1, 2, 3), rate=0.01)
    return {"before": before, "losses": losses, "rows": layer.trainable_weights[0]}


@case
def scalars(hub, keras, folders):
    out = hub.KerasLayer(folders["scalars"])(tf.constant(3.0))
    return {"twice": out["twice"], "half": out["half"][0]}


@case
def saved_by_keras_2(hub, keras, folders):
    """Without dropout in training, whose random numbers differ: with the SavedModel's own ``training=False`` there."""
    layer = hub.KerasLayer(folders["keras_2"], trainable=True)
    model = keras.Sequential([keras.Input((3,)), layer])
    x = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)
    before, regularized = model(x), _total(model.losses)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=False) ** 2) + sum(layer.losses)
    gradients = tape.gradient(loss, list(layer.resolved_object.trainable_variables))
    layer(x, training=True)
    named = {v.name.rsplit("/", 1)[-1].split(":")[0]: v.numpy() for v in layer.resolved_object.variables}
    layer.trainable = False
    return {
        "before": before,
        "regularized": regularized,
        "counts": [len(layer.get_weights()), len(gradients)],
        "gradients": np.concatenate([np.ravel(gradient) for gradient in gradients]),
        "moving_mean": named["moving_mean"],
        "frozen": layer(x, training=True),
        "regularized_frozen": _total(layer.losses),
    }


@case
def strings(hub, keras, folders):
    layer = hub.KerasLayer(folders["strings"])
    out = layer(tf.constant(["one", "four", ""]))
    return {"length": out["length"], "first": np.array(out["first"]).astype("U")}


@case
def nests(hub, keras, folders):
    layer = hub.KerasLayer(folders["nests"])
    given = {"a": tf.ones((2, 2)), "b": [tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([5, 6], tf.int64)]}
    out = layer(given)
    return {"sum": out["list"][0], "twice": out["list"][1], "row": out["row"]}


@case
def nests_in_a_functional_model(hub, keras, folders):
    a, b, c = keras.Input((2,)), keras.Input((2,)), keras.Input((), dtype="int64")
    out = hub.KerasLayer(folders["nests"])({"a": a, "b": [b, c]})
    model = keras.Model([a, b, c], [out["list"][0], out["list"][1], out["row"]])
    found = model([tf.ones((2, 2)), tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([5, 6], tf.int64)])
    return {str(number): array for number, array in enumerate(found)}


@case
def pair(hub, keras, folders):
    left, right = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([left, right], hub.KerasLayer(folders["pair"])([left, right]))
    added, subtracted = model([tf.ones((1, 3)), tf.fill((1, 3), 4.0)])
    return {"added": added, "subtracted": subtracted}


@case
def hyper_parameters(hub, keras, folders):
    x = _column(1, 2, 3)
    ten = hub.KerasLayer(folders["hyper_parameters"], arguments={"a": 10.0})
    again = hub.KerasLayer.from_config(ten.get_config())
    both = hub.KerasLayer(folders["hyper_parameters"], arguments={"a": 2.0, "b": 1.0})
    return {"none": hub.KerasLayer(folders["hyper_parameters"])(x), "ten": ten(x), "again": again(x), "both": both(x)}


@case
def sparse(hub, keras, folders):
    x = tf.sparse.from_dense([[1.0, 0, 0, 2.0], [0, 0, 3.0, 0]])
    return {"sums": hub.KerasLayer(folders["composites"])(x)}


@case
def ragged(hub, keras, folders):
    out = hub.KerasLayer(folders["ragged"])(tf.ragged.constant([[1.0, 8.0], [3.0]]))
    return {"values": out.values, "splits": out.row_splits}


@case
def float64_inputs_are_cast(hub, keras, folders):
    return {"y": hub.KerasLayer(folders["half_plus_one"])(np.array([[1.0], [3.0]]))}


@case
def signatures(hub, keras, folders):
    place = folders["signatures_only"]
    x, y = tf.constant([1.0, 2.0]), tf.constant([5.0, 7.0])
    by_key = hub.KerasLayer(place, signature="serving_default", output_key="y")
    as_dict = hub.KerasLayer(place, signature="serving_default", signature_outputs_as_dict=True)(x)
    combined = hub.KerasLayer(place, signature="combine", signature_outputs_as_dict=True)({"left": x, "right": y})
    given = hub.KerasLayer(place, signature="combine", output_key="product", arguments={"right": [3.0, 4.0]})
    again = hub.KerasLayer.from_config(by_key.get_config())
    return {
        "y": by_key(x),
        "again": again(x),
        "named": by_key({"x": x}),
        "dict_y": as_dict["y"],
        "sum": combined["sum"],
        "product": combined["product"],
        "given": given({"left": x}),
        "keys": np.array(sorted(as_dict)),
        "weights": len(by_key.weights),
    }


@case
def meta_graphs(hub, keras, folders):
    def layer(tags):
        return hub.KerasLayer(folders["meta_graphs"], tags=tags, signature="serving_default", output_key="y")

    return {"serve": layer(["serve"])(_column(1, 2)), "train": layer({"serve", "train"})(_column(1, 2))}


@case
def v1_module(hub, keras, folders):
    images = tf.reshape(tf.range(96.0) / 96, (2, 4, 4, 3))
    place = folders["v1_module"]
    layer = hub.KerasLayer(place)
    classes = hub.KerasLayer(place, signature="image_classification")
    both = hub.KerasLayer(place, signature="image_classification", signature_outputs_as_dict=True)(images)
    return {
        "default": layer(images),
        "features": hub.KerasLayer(place, signature="image_feature_vector")(images),
        "classes": classes(images),
        "key": hub.KerasLayer(place, signature="image_classification", output_key="features")(images),
        "both": both["default"],
        "both_features": both["features"],
        "train": hub.KerasLayer(place, tags=["train"])(images),
        "model": keras.Sequential([keras.Input((4, 4, 3)), layer, _dense(keras, 1)])(images),
        "trainable": len(layer.trainable_weights),
        "weights": np.sort(np.concatenate([np.ravel(w) for w in layer.get_weights()])),
    }


@case
def loaded_directly(hub, keras, folders):
    module = hub.load(folders["v1_module"])
    out = module.signatures["image_feature_vector"](images=tf.ones((1, 4, 4, 3)))["default"]
    plus = hub.load(folders["half_plus_one"])
    again = hub.KerasLayer(plus, trainable=True)
    return {
        "out": out,
        "v1": [module._is_hub_module_v1, plus._is_hub_module_v1],
        "variables": len(module.variables),
        "tagged": hub.load(folders["v1_module"], tags=["train"]).signatures["default"](tf.ones((1, 4, 4, 3)))[
            "default"
        ],
        "from_object": again(_column(4)),
        "same": again.resolved_object is plus,
        "resolved": hub.resolve(folders["half_plus_one"]) == folders["half_plus_one"],
    }


@case
def callables(hub, keras, folders):
    def triple(x):
        return 3.0 * x

    class WithTraining:
        def __call__(self, x, training=False):
            return x + (1.0 if training else 2.0)

    layer = hub.KerasLayer(WithTraining(), trainable=True)
    return {
        "function": hub.KerasLayer(triple)(_column(1, 2)),
        "training": layer(_column(1), training=True),
        "inference": layer(_column(1), training=False),
        "default": layer(_column(1)),
    }


@case
def configurations(hub, keras, folders):
    layer = hub.KerasLayer(folders["one_shapeless"], trainable=False, output_shape=(), arguments=None, name="sums")
    config = hub.KerasLayer(
        folders["signatures_only"], signature="combine", output_key="sum", arguments={"right": [1.0]}, output_shape=[2]
    ).get_config()
    kept = {key: config[key] for key in ("handle", "signature", "output_key", "arguments", "trainable")}
    model = keras.Sequential([hub.KerasLayer(folders["half_plus_one"])])
    before = model(_column(10))
    again = keras.models.model_from_json(model.to_json(), custom_objects={"KerasLayer": hub.KerasLayer})
    return {
        "name": np.array(layer.get_config()["name"]),
        "kept": np.array(json.dumps(kept, sort_keys=True).replace(folders["signatures_only"], "")),
        "shape": list(config["output_shape"]),
        "before": before,
        "again": again(_column(10)),
    }


@case
def output_shapes(hub, keras, folders):
    layer = hub.KerasLayer(folders["shapeless"], output_shape={"matrix": (3,), "vector": ()})
    x = keras.Input((3,))
    out = layer(x)
    model = keras.Model(x, out)
    found = model(tf.ones((2, 3)))
    one = hub.KerasLayer(folders["half_plus_one"], output_shape=[1])
    return {
        "matrix": found["matrix"],
        "vector": found["vector"],
        "computed": list(one.compute_output_shape((10, 1))),
    }


@case
def resnet(hub, keras, folders):
    layer = hub.KerasLayer(folders["resnet"], trainable=True)
    model = keras.Sequential([keras.Input((32, 32, 3)), layer, _dense(keras, 4, 0.01)])
    generator = np.random.default_rng(0)
    images, targets = generator.random((4, 32, 32, 3), "float32"), generator.random((4, 4), "float32")
    before = layer(images)
    regularized = _total(model.losses)
    losses = _trained(model, images, targets, rate=0.01)
    return {
        "before": before,
        "regularized": regularized,
        "losses": losses,
        "after": model(images),
        "moved": layer(images),
        "counts": [len(layer.trainable_weights), len(layer.non_trainable_weights)],
    }


def _failing(hub, folders, kind, inputs=None, **kwargs):
    layer = hub.KerasLayer(folders.get(kind, kind), **kwargs)
    if inputs is not None:
        layer(inputs)


@error
def signature_without_key(hub, folders):
    _failing(hub, folders, "signatures_only", signature="serving_default")


@error
def signature_with_both(hub, folders):
    _failing(*(hub, folders, "signatures_only"), signature="combine", output_key="sum", signature_outputs_as_dict=True)


@error
def dict_without_signature(hub, folders):
    _failing(hub, folders, "half_plus_one", signature_outputs_as_dict=True)


@error
def unknown_signature(hub, folders):
    _failing(hub, folders, "signatures_only", signature="serve", output_key="y")


@error
def needs_a_signature(hub, folders):
    _failing(hub, folders, "signatures_only")


@error
def object_without_signatures(hub, folders):
    hub.KerasLayer(lambda x: x, signature="serving_default", output_key="y")


@error
def no_handle(hub, folders):
    hub.KerasLayer(object())


@error
def unknown_output_key(hub, folders):
    _failing(hub, folders, "signatures_only", tf.ones(2), signature="serving_default", output_key="z")


@error
def key_of_no_dict(hub, folders):
    _failing(hub, folders, "half_plus_one", tf.ones((1, 1)), output_key="y")


@error
def trainable_signature(hub, folders):
    place = {"signature": "serving_default", "output_key": "y", "trainable": True}
    _failing(hub, folders, "signatures_only", tf.ones(2), **place)


@error
def trainable_v1(hub, folders):
    _failing(hub, folders, "v1_module", tf.ones((1, 4, 4, 3)), trainable=True)


@error
def made_trainable_later(hub, folders):
    layer = hub.KerasLayer(folders["v1_module"])
    layer.trainable = True
    layer(tf.ones((1, 4, 4, 3)))


@error
def callable_with_tags(hub, folders):
    hub.KerasLayer(lambda x: x, tags=["serve"])


@error
def callable_with_load_options(hub, folders):
    hub.KerasLayer(lambda x: x, load_options=tf.saved_model.LoadOptions())


@error
def callable_has_no_config(hub, folders):
    hub.KerasLayer(lambda x: x).get_config()


@error
def arguments_no_json(hub, folders):
    hub.KerasLayer(folders["hyper_parameters"], arguments={"a": tf.constant(1.0)}).get_config()


@error
def no_shape(hub, folders):
    _failing(hub, folders, "half_plus_one", output_shape=["x"])


@error
def wrong_shape(hub, folders):
    _failing(hub, folders, "half_plus_one", tf.ones((2, 1)), output_shape=(7,))


@error
def losses_no_callables(hub, folders):
    function = type("F", (), {"__call__": lambda self, x: x, "regularization_losses": [1.0]})()
    hub.KerasLayer(function)


@error
def no_such_folder(hub, folders):
    hub.KerasLayer(folders["half_plus_one"] + "-missing")


@error
def no_saved_model(hub, folders):
    hub.load(folders["half_plus_one"] + "/variables")


@error
def no_string(hub, folders):
    hub.load(0)


@error
def wrong_tags(hub, folders):
    hub.load(folders["v1_module"], tags=["nothing"])
