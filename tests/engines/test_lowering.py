"""The translation of Keras layers, kind by kind, against Keras itself."""

import keras
import numpy as np
import pytest
from keras import layers

from resfit.engines import lowering, openvino_graph
from resfit.networks import build, catalog
from resfit.networks import layers as own
from resfit.preprocessing import CAFFE
from tests.numeric import images as random_images
from tests.numeric import randomize, relative_error
from tests.specs import shortened


def openvino(model, images):
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(openvino_graph.build(model), "CPU", config)(images)[0]


def onnxruntime(model, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from resfit.engines import onnx_graph

    content = onnx_graph.build(model).SerializeToString()
    return onnxruntime.InferenceSession(content).run(None, {"images": images})[0]


RUNTIMES = [openvino, onnxruntime]


def features(spec):
    """What of a spec decides which layers there are and how they are joined."""
    return {
        name: getattr(spec, name)
        for name in ("block", "preactivation", "norm", "attention", "stem_pool", "stem_pool_padding", "shortcut",
                     "antialias", "weight_standardization", "padding", "activation", "stride_in_block",
                     "stride_in_stage", "conv_bias")
    } | {"grouped": spec.groups > 1, "stem": len(spec.stem)}  # fmt: skip


def kinds():
    """One network of the catalog for each combination of features."""
    seen = {}
    for name, row in catalog.rows().items():
        seen.setdefault(tuple(features(row.spec).items()), name)
    return sorted(seen.values())


def few():
    """Enough of them that every feature is in one."""
    chosen, covered = [], set()
    for name in kinds():
        new = set(features(catalog.get(name).spec).items()) - covered
        if new:
            chosen.append(name)
            covered |= new
    return chosen


def check_network(name, runtime):
    spec = shortened(catalog.get(name).spec)
    model = build.build(spec, input_spec=CAFFE, preprocess=True)
    randomize(model, seed=1)
    images = random_images(2, 67, 54, 3).astype(np.float32)  # odd and even, where paddings differ
    assert relative_error(runtime(model, images), np.asarray(model(images, training=False))) < 1e-4


@pytest.mark.parametrize("name", few())
def test_every_feature_of_networks(name):
    check_network(name, openvino)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", kinds())
def test_every_kind_of_network(name, runtime):
    check_network(name, runtime)


def built(*steps, shape=(9, 8, 5)):
    inputs = keras.Input(shape)
    x = inputs
    for step in steps:
        x = step(x)
    model = keras.Model(inputs, x)
    return randomize(model)


CASES = {
    "padding before max pooling of negative values": [layers.ZeroPadding2D(1), layers.MaxPooling2D(3, 2)],
    "padding after relu": [layers.ReLU(), layers.ZeroPadding2D(((1, 0), (0, 1))), layers.MaxPooling2D(3, 2)],
    "padding before average": [layers.ZeroPadding2D(1), layers.AveragePooling2D(3, 2)],
    "same average": [layers.AveragePooling2D(2, 2, padding="same")],
    "same max": [layers.MaxPooling2D(3, 2, padding="same")],
    "strided same convolution": [layers.Conv2D(6, 3, 2, padding="same")],
    "even kernel": [layers.Conv2D(6, 2, padding="same")],
    "dilated and grouped": [layers.Conv2D(10, 3, padding="same", dilation_rate=2, groups=5)],
    "padding before same convolution": [layers.ZeroPadding2D(2), layers.Conv2D(6, 3, 2, padding="same")],
    "activations": [layers.Conv2D(8, 1, activation=name) for name in ("silu", "gelu", "elu", "softplus", "tanh")],
    "relu6": [layers.ReLU(6.0), layers.Conv2D(4, 1), layers.Activation("relu6")],
    "norm twice after a convolution": [layers.Conv2D(6, 3), layers.BatchNormalization(), layers.BatchNormalization()],
    "norm without scale": [layers.Conv2D(6, 3), layers.BatchNormalization(scale=False, center=False)],
    "norm of the input": [layers.Normalization(mean=[1, 2, 3, 4, 5], variance=[1, 2, 3, 4, 5])],
    "head": [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(7, "relu"), layers.Dense(3, "softmax")],
    "max head": [layers.GlobalMaxPooling2D(), layers.Dense(3, use_bias=False), layers.BatchNormalization()],
    "flatten": [layers.Flatten(), layers.Dense(3)],
    "softmax of maps": [layers.Softmax()],
    "reshape": [layers.Reshape((8, 9, 5))],
    "EvoNorm": [layers.Conv2D(12, 3, 2), own.EvoNormS0(4, epsilon=1e-2), layers.Conv2D(6, 1), own.EvoNormS0(6)],
    "EvoNorm of one group": [own.EvoNormS0(1), layers.ZeroPadding2D(1), layers.MaxPooling2D(3, 2)],
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", CASES)
def test_layers(case, runtime):
    model = built(*CASES[case])
    images = np.random.default_rng(0).normal(0, 2, (3, 9, 8, 5)).astype(np.float32)
    assert relative_error(runtime(model, images), np.asarray(model(images, training=False))) < 1e-4


def test_a_convolution_with_two_readers_is_not_folded_into_both():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same")(inputs)
    model = randomize(keras.Model(inputs, layers.Add()([x, layers.BatchNormalization()(x)])))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    assert relative_error(openvino(model, images), np.asarray(model(images, training=False))) < 1e-5


def test_models_inside_models():
    inner = built(layers.Conv2D(6, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D())
    outer = keras.Sequential([keras.Input((9, 8, 5)), inner, layers.Dense(3)])
    randomize(outer)
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 5)).astype(np.float32)
    assert relative_error(openvino(outer, images), np.asarray(outer(images, training=False))) < 1e-5


class Doubling(keras.layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    "step",
    [
        Doubling(3),
        layers.Conv2D(3, 3, activation=lambda x: x * 2),
        layers.Conv2DTranspose(3, 3),
        layers.BatchNormalization(axis=1),
        layers.ReLU(negative_slope=0.1),
    ],
)
def test_what_is_not_known_is_refused_not_guessed(step):
    with pytest.raises(lowering.Unsupported):
        openvino_graph.build(built(step))


def test_what_is_not_known_is_traced(tmp_path):
    from resfit import cache_kinds as cache
    from resfit import engines

    model = built(layers.GlobalAveragePooling2D(), Doubling(3))
    images = np.random.default_rng(0).normal(size=(4, 9, 8, 5)).astype(np.float32)
    rows = engines.create(model, "openvino", cache=tmp_path).run(images)
    assert relative_error(rows, np.asarray(model(images, training=False))) < 1e-5
    assert cache.find(tmp_path)[0].about["conversion"].startswith("traced (Doubling")
