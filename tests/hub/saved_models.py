"""Small SavedModels of every kind that a hub takes, made by TensorFlow alone: no Keras of either version."""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf


def _saved(folder: Path, obj, **kwargs) -> Path:
    tf.saved_model.save(obj, os.fspath(folder), **kwargs)
    return folder


def half_plus_one(folder: Path) -> Path:
    """y = w x + 1 with w = 0.5; only w is published as trainable, though the tf.Variable of the bias is, too."""
    obj = tf.train.Checkpoint()
    kernel = tf.Variable([[0.5]], name="kernel")
    bias = tf.Variable([1.0], name="bias")
    obj.__call__ = tf.function(
        lambda x: tf.matmul(x, kernel) + bias, input_signature=[tf.TensorSpec((None, 1), tf.float32)]
    )
    obj.variables, obj.trainable_variables = [kernel, bias], [kernel]
    obj.regularization_losses = [
        tf.function(lambda: 0.01 * tf.reduce_sum(kernel**2), input_signature=[]),
        tf.function(lambda: 0.02 * tf.reduce_sum(tf.abs(kernel)), input_signature=[]),
    ]
    return _saved(folder, obj)


def flags(folder: Path) -> Path:
    """Publishes as trainable what was made with trainable=False, and the other way round."""
    obj = tf.train.Checkpoint()
    off, on = tf.Variable([2.0], trainable=False, name="off"), tf.Variable([3.0], trainable=True, name="on")
    obj.__call__ = tf.function(lambda x: x * off + on, input_signature=[tf.TensorSpec((None, 1), tf.float32)])
    obj.variables, obj.trainable_variables = [on, off], [off]
    return _saved(folder, obj)


def batch_norm(folder: Path) -> Path:
    """A batch norm with momentum 0.8, whose moving statistics move in training."""
    obj = tf.train.Checkpoint()
    beta, gamma = tf.Variable([0.0], name="beta"), tf.Variable([1.0], name="gamma")
    mean = tf.Variable([0.0], trainable=False, name="moving_mean")
    variance = tf.Variable([1.0], trainable=False, name="moving_variance")

    @tf.function
    def call(inputs, training=False):
        if training:
            mu, var = tf.nn.moments(inputs, axes=[0])
            mean.assign(0.8 * mean + 0.2 * mu)
            variance.assign(0.8 * variance + 0.2 * var)
        else:
            mu, var = mean, variance
        return (inputs - mu) * tf.math.rsqrt(var + 1e-3) * gamma + beta

    for training in (True, False):
        call.get_concrete_function(tf.TensorSpec((None, 1), tf.float32), training=training)
    obj.__call__ = call
    obj.variables, obj.trainable_variables = [beta, gamma, mean, variance], [beta, gamma]
    obj.regularization_losses = []
    return _saved(folder, obj)


def hyper_parameters(folder: Path) -> Path:
    """y = a x + b with a = 1 and b = 0 unless they are given."""
    obj = tf.train.Checkpoint()
    scalar = tf.TensorSpec((), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.float32), scalar, scalar])
    def call(x, a=1.0, b=0.0):
        return a * x + b

    obj.__call__ = call
    return _saved(folder, obj)


def nests(folder: Path) -> Path:
    """Takes {"a": (n, 2), "b": [(n, 2), (n,) of int64]}; gives a dict of a list, a vector and one number an example."""
    obj = tf.train.Checkpoint()
    spec = {
        "a": tf.TensorSpec((None, 2), tf.float32, name="a"),
        "b": [tf.TensorSpec((None, 2), tf.float32, name="b0"), tf.TensorSpec((None,), tf.int64, name="b1")],
    }

    @tf.function(input_signature=[spec])
    def call(x):
        total = x["a"] + x["b"][0]
        return {"list": [total, x["b"][1] * 2], "row": tf.reduce_sum(total, axis=1)}

    obj.__call__ = call
    return _saved(folder, obj)


def pair(folder: Path) -> Path:
    """Takes a list of two tensors and gives a list of their sum and difference."""
    obj = tf.train.Checkpoint()
    spec = tf.TensorSpec((None, 3), tf.float32)
    obj.__call__ = tf.function(lambda x: [x[0] + x[1], x[0] - x[1]], input_signature=[[spec, spec]])
    return _saved(folder, obj)


def scalars(folder: Path) -> Path:
    """Takes one number and gives its double, and half of it under a name."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: {"twice": 2.0 * x, "half": (x / 2.0,)}, input_signature=[tf.TensorSpec((), tf.float32)]
    )
    return _saved(folder, obj)


def keras_2(folder: Path) -> Path:
    """What Keras 2 writes of a model with a regularised layer, a batch norm and dropout. For a process of its own."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((3,)),
            layers.Dense(4, kernel_regularizer=tf_keras.regularizers.L2(0.01)),
            layers.BatchNormalization(momentum=0.8),
            layers.Dropout(0.5),
            layers.Dense(1, trainable=False),
        ]
    )
    model.save(os.fspath(folder), save_format="tf", include_optimizer=False)
    return folder


def strings(folder: Path) -> Path:
    """Lengths of strings, as (n,) of int32, and their first letters."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: {"length": tf.strings.length(x), "first": tf.strings.substr(x, 0, 1)},
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    return _saved(folder, obj)


def vocabulary(folder: Path, scratch: Path) -> Path:
    """Looks words up in a table that is read from an asset, and embeds them; the table's file is gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    words = scratch / "words.txt"
    words.write_text("red\ngreen\nblue\n")
    obj = tf.train.Checkpoint()
    init = tf.lookup.TextFileInitializer(
        os.fspath(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    table = tf.lookup.StaticHashTable(init, -1)
    rows = tf.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0]], name="rows")
    obj.table = table
    obj.__call__ = tf.function(
        lambda x: tf.gather(rows, tf.where(table.lookup(x) < 0, tf.constant(3, tf.int64), table.lookup(x))),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    obj.variables = obj.trainable_variables = [rows]
    _saved(folder, obj)
    words.unlink()
    return folder


def attributes(folder: Path, scratch: Path) -> Path:
    """Parses numbers; has an asset with a number in it and a variable with its value. The asset's source is gone."""
    scratch.mkdir(parents=True, exist_ok=True)
    number = scratch / "number.txt"
    number.write_text("12345\n")
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: tf.strings.to_number(x, tf.int64), input_signature=[tf.TensorSpec((None, 1), tf.string)]
    )
    obj.sample_input = tf.saved_model.Asset(os.fspath(number))
    obj.sample_output = tf.Variable([[12345]], dtype=tf.int64)
    _saved(folder, obj)
    number.unlink()
    return folder


def composites(folder: Path) -> Path:
    """Sums the rows of a sparse tensor."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: tf.ensure_shape(tf.sparse.reduce_sum(x, axis=1), (None,)),
        input_signature=[tf.SparseTensorSpec((None, 4), tf.float32)],
    )
    return _saved(folder, obj)


def ragged(folder: Path) -> Path:
    """Doubles a ragged tensor."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: x * 2.0, input_signature=[tf.RaggedTensorSpec((None, None), tf.float32, ragged_rank=1)]
    )
    return _saved(folder, obj)


def shapeless(folder: Path) -> Path:
    """Gives (n, 3), (n,) and () without telling the shapes."""
    obj = tf.train.Checkpoint()

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32)])
    def call(x):
        return {"matrix": _forget(2.0 * x), "vector": _forget(tf.reduce_sum(x, axis=1))}

    obj.__call__ = call
    return _saved(folder, obj)


def one_shapeless(folder: Path) -> Path:
    """Gives one number an example without telling the shape."""
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(
        lambda x: _forget(tf.reduce_sum(x, axis=1)), input_signature=[tf.TensorSpec((None, 3), tf.float32)]
    )
    return _saved(folder, obj)


def _forget(tensor):
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))


def signatures_only(folder: Path) -> Path:
    """A SavedModel that cannot be called: two signatures, one of two inputs."""
    obj = tf.train.Checkpoint()
    vector = tf.TensorSpec((None,), tf.float32)
    weight = tf.Variable([2.0], name="weight")
    obj.weight = weight

    @tf.function(input_signature=[vector])
    def double(x):
        return {"y": x * weight, "x": x}

    @tf.function(input_signature=[vector, vector])
    def combine(left, right):
        return {"sum": left + right, "product": left * right}

    return _saved(folder, obj, signatures={"serving_default": double, "combine": combine})


def meta_graphs(folder: Path) -> Path:
    """Two MetaGraphs of one signature: tags {serve} doubles, {serve, train} triples."""
    builder = tf.compat.v1.saved_model.Builder(os.fspath(folder))
    for number, (tags, factor) in enumerate(((["serve"], 2.0), (["serve", "train"], 3.0))):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.float32, (None, 1))
            scale = tf.compat.v1.get_variable("scale", initializer=[factor], use_resource=True)
            session.run(tf.compat.v1.global_variables_initializer())
            build = tf.compat.v1.saved_model.predict_signature_def
            signature = build({"x": x}, {"y": x * factor if number else x * scale})
            if number == 0:
                builder.add_meta_graph_and_variables(session, tags, {"serving_default": signature})
            else:
                builder.add_meta_graph(tags, {"serving_default": signature})
    builder.save()
    return folder


def v1_module(folder: Path) -> Path:
    """An image module in the TF1 Hub format: no tags, and ["train"]; default, classification and feature signatures."""
    build = tf.compat.v1.saved_model.predict_signature_def
    builder = tf.compat.v1.saved_model.Builder(os.fspath(folder))
    for tags in ([], ["train"]):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            images = tf.compat.v1.placeholder(tf.float32, (None, 4, 4, 3), name="images")
            kernel = tf.compat.v1.get_variable(
                "kernel", initializer=tf.reshape(tf.range(15.0) / 10, (3, 5)), use_resource=True
            )
            features = tf.reduce_mean(images, axis=(1, 2)) * (2.0 if tags else 1.0)
            logits = tf.matmul(features, kernel)
            signatures = {
                "default": build({"images": images}, {"default": features}),
                "image_feature_vector": build({"images": images}, {"default": features}),
                "image_classification": build({"images": images}, {"default": logits, "features": features}),
            }
            session.run(tf.compat.v1.global_variables_initializer())
            if not tags:
                builder.add_meta_graph_and_variables(session, tags, signatures)
            else:
                builder.add_meta_graph(tags, signatures)
    builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


def all_of_them(root: Path) -> dict[str, str]:
    """Writes one of each kind under a folder; returns the folders by kind."""
    plain = (
        *(
            half_plus_one,
            flags,
            batch_norm,
            hyper_parameters,
            nests,
            pair,
            scalars,
            strings,
            composites,
            ragged,
            shapeless,
        ),
        *(one_shapeless, signatures_only, meta_graphs, v1_module),
    )
    made = {make.__name__: make(root / make.__name__) for make in plain}
    made["attributes"] = attributes(root / "attributes", root / "scratch")
    made["vocabulary"] = vocabulary(root / "vocabulary", root / "scratch")
    return {name: os.fspath(path) for name, path in made.items()}
