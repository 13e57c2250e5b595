"""The six networks of keras.applications: the same names, order, seeds and outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resfit.networks import catalog
from resfit.networks.build import build
from resfit.weights.keras_models import shapes_alone
from tests.numeric import randomize, relative_error

LAYERS = {
    "ResNet50": (177, 175),
    "ResNet101": (347, 345),
    "ResNet152": (517, 515),
    "ResNet50V2": (192, 190),
    "ResNet101V2": (379, 377),
    "ResNet152V2": (566, 564),
}
PARAMETERS = {
    "ResNet50": (25_636_712, 23_587_712),
    "ResNet101": (44_707_176, 42_658_176),
    "ResNet152": (60_419_944, 58_370_944),
    "ResNet50V2": (25_613_800, 23_564_800),
    "ResNet101V2": (44_675_560, 42_626_560),
    "ResNet152V2": (60_380_648, 58_331_648),
}


def pair(name: str, **options):
    """The same network by Keras and by resfit, from the same seed."""
    built = []
    for make in (
        lambda: getattr(keras.applications, name)(weights=None, **options),
        lambda: build(catalog.get(name.lower()).spec, name=name.lower(), **options),
    ):
        keras.utils.clear_session()
        keras.utils.set_random_seed(7)
        built.append(make())
    return built


# those of 101 layers are those of 152 with fewer blocks
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "101" in name else name for name in LAYERS]
)
def test_names_order_number_and_parameters(name):
    # inside the scope no weight is allocated
    with shapes_alone():
        theirs, ours = pair(name, input_shape=(224, 224, 3))
        body = build(catalog.get(name.lower()).spec, include_top=False)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert [type(layer) for layer in ours.layers] == [type(layer) for layer in theirs.layers]
    assert [weight.path for weight in ours.weights] == [weight.path for weight in theirs.weights]
    assert (len(ours.layers), len(body.layers)) == LAYERS[name]
    assert (ours.count_params(), body.count_params()) == PARAMETERS[name]


def test_layer_140_is_the_documented_one():
    with shapes_alone():
        model = build(catalog.get("resnet50").spec)
    assert model.layers[140].name == "conv4_block6_3_bn"


@pytest.mark.parametrize("name", ["ResNet50", "ResNet50V2"])
def test_same_initial_weights_from_the_same_seed(name):
    theirs, ours = pair(name)
    for expected, received in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


CASES = [
    ("ResNet50", {"input_shape": (224, 224, 3)}),
    ("ResNet50", {"include_top": False, "pooling": "max", "input_shape": (224, 224, 3)}),
    ("ResNet50", {"include_top": False, "input_shape": (160, 96, 3)}),
    ("ResNet50V2", {"input_shape": (224, 224, 3), "classifier_activation": None}),
    ("ResNet50V2", {"include_top": False, "pooling": "avg", "input_shape": (224, 224, 3)}),
    ("ResNet50V2", {"include_top": False, "input_shape": (160, 96, 3)}),
    # deeper ones differ in the number of blocks, which the names and numbers of their layers show above
    *(
        pytest.param(
            name, {"include_top": False, "pooling": "avg", "input_shape": (160, 96, 3)}, marks=pytest.mark.slow
        )
        for name in ("ResNet50", "ResNet101", "ResNet101V2", "ResNet152", "ResNet152V2")
    ),
    pytest.param(
        "ResNet50V2", {"include_top": False, "pooling": "max", "input_shape": (160, 96, 3)}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_same_output_with_random_weights_and_statistics(name, options):
    theirs, ours = pair(name, **options)
    randomize(theirs)
    ours.set_weights(theirs.get_weights())
    images = np.random.default_rng(1).normal(0, 60, (2, *options["input_shape"])).astype("float32")
    expected = theirs(images, training=False)
    assert float(np.std(expected)) > 0
    assert relative_error(ours(images, training=False), expected) <= 1e-5
