"""Filling a network: everything fits, or nothing is changed and the text lists what does not."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.weights import canonical
from resfit.weights.formats import keras_h5
from resfit.weights.formats.keras_h5 import H5Layer
from tests.numeric import randomize

TINY = catalog.get("resnet10_tiny").spec.replace(
    widths=(4, 6, 8, 10), inner_widths=(4, 6, 8, 10), stem=(catalog.StemConv(4, 3, 2),), classes=7
)


@pytest.fixture
def tiny():
    return randomize(build(TINY, name="tiny"))


def equal(model, values):
    for name, variable in canonical.weights(model).items():
        np.testing.assert_array_equal(np.asarray(variable), values[name], err_msg=name)


def test_names_are_layer_and_variable(tiny):
    names = list(canonical.weights(tiny))
    assert names[0] == "conv1_conv/kernel"
    assert "conv2_block1_1_bn/moving_variance" in names
    assert names[-2:] == ["predictions/kernel", "predictions/bias"]
    assert len(names) == len(tiny.weights)


def test_fill_puts_every_array_in_its_place(tiny):
    values = canonical.arrays(tiny)
    other = randomize(build(TINY), seed=1)
    canonical.fill(other, {name: array.astype(np.float64) for name, array in values.items()})
    equal(other, values)


def test_missing_left_over_and_misshapen_are_listed_and_nothing_changes(tiny):
    before = canonical.arrays(tiny)
    values = {name: array + 1 for name, array in before.items()}
    values["extra/kernel"] = np.zeros((2, 3))
    del values["conv2_block1_1_bn/gamma"]
    values["conv1_conv/kernel"] = np.zeros((7, 7, 3, 4), np.float32)
    with pytest.raises(CheckpointError) as caught:
        canonical.fill(tiny, values)
    text = str(caught.value)
    assert "1 weights without an array: conv2_block1_1_bn/gamma (4,)" in text
    assert "1 arrays left over: extra/kernel (2, 3)" in text
    assert "conv1_conv/kernel: network (3, 3, 3, 4), file (7, 7, 3, 4)" in text
    equal(tiny, before)


@pytest.mark.parametrize("change", [{"extra/kernel": np.zeros(2)}, {"conv1_conv/kernel": np.zeros((3, 3, 4, 4))}])
def test_each_misfit_alone_is_refused(tiny, change):
    with pytest.raises(CheckpointError, match=next(iter(change))):
        canonical.fill(tiny, canonical.arrays(tiny) | change)
    values = canonical.arrays(tiny)
    del values["predictions/bias"]
    with pytest.raises(CheckpointError, match="1 weights without an array: predictions/bias"):
        canonical.fill(tiny, values)


def test_ignored_and_fresh_names(tiny):
    before = canonical.arrays(tiny)
    values = {name: array + 1 for name, array in before.items()} | {"extra/kernel": np.zeros(2)}
    canonical.fill(tiny, values, ignore=("extra/*",), fresh=(canonical.HEAD,))
    after = canonical.arrays(tiny)
    np.testing.assert_array_equal(after["predictions/kernel"], before["predictions/kernel"])
    np.testing.assert_array_equal(after["conv1_conv/kernel"], before["conv1_conv/kernel"] + 1)


def renamed(layers):
    return [H5Layer(f"l{n}", tuple(f"w{i}" for i in range(len(x.arrays))), x.arrays) for n, x in enumerate(layers)]


def with_weights(model):
    return [layer for layer in canonical.to_layers(model) if layer.arrays]


def test_layers_by_name_in_any_order(tiny):
    found = canonical.from_layers(list(reversed(with_weights(tiny))), build(TINY))
    equal(tiny, found)


def test_layers_by_order_under_other_names(tiny):
    equal(tiny, canonical.from_layers(renamed(with_weights(tiny)), build(TINY)))


def test_layers_by_order_into_a_body_name_the_classifier(tiny):
    body = build(TINY, include_top=False)
    found = canonical.from_layers(renamed(with_weights(tiny)), body)
    np.testing.assert_array_equal(found["predictions/bias"], np.asarray(tiny.get_layer("predictions").bias))
    canonical.fill(body, found, ignore=(canonical.HEAD,))


def test_layers_with_another_number_of_weights(tiny):
    layers = with_weights(tiny)
    layers[0] = H5Layer("conv1_conv", ("a", "b"), (*layers[0].arrays, np.zeros(4)))
    with pytest.raises(CheckpointError, match="'conv1_conv' must have 1 weights"):
        canonical.from_layers(layers, tiny)


def test_published_resnext_kernels_become_grouped_ones():
    """A file with depthwise kernels, as keras.applications published ResNeXt, fills the grouped network."""
    spec = catalog.get("resnext50").spec.replace(
        depths=(1,), widths=(16,), inner_widths=(8,), groups=4, stage_strides=(1,), classes=3
    )
    model = randomize(build(spec))
    layers = []
    for layer in with_weights(model):
        if layer.name == "conv2_block1_2_conv":
            grouped = layer.arrays[0]  # (3, 3, 2, 8)
            depthwise = np.zeros((3, 3, 8, 2), np.float32)
            for group in range(4):
                for i in range(2):
                    depthwise[:, :, 2 * group + i] = grouped[:, :, i, 2 * group : 2 * group + 2]
            layer = H5Layer(layer.name, ("conv2_block1_2_conv/depthwise_kernel:0",), (depthwise,))
        layers.append(layer)
    equal(model, canonical.from_layers(layers, build(spec)))


def test_a_file_tells_its_classes_and_channels(tiny, tmp_path):
    keras_h5.write_layers(tmp_path / "tiny.h5", canonical.to_layers(tiny))
    file = canonical.read(tmp_path / "tiny.h5")
    assert (file.classes, file.channels) == (7, 3)
    body = canonical.to_layers(build(TINY.replace(in_channels=4), include_top=False))
    keras_h5.write_layers(tmp_path / "body.h5", body)
    file = canonical.read(tmp_path / "body.h5")
    assert (file.classes, file.channels) == (None, 4)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, [1 + 10 + 100]),
        (2, [1 * 1.5, 10 * 1.5]),
        (4, [1 * 0.75, 10 * 0.75, 100 * 0.75, 1 * 0.75]),
        (6, [0.5, 5, 50, 0.5, 5, 50]),
    ],
)
def test_adapt_input_is_timms_rule(channels, expected):
    rgb = np.asarray([1, 10, 100], np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(canonical.adapt_input(rgb, channels).ravel(), expected)
    # a kernel for BGR gives the same filters for red, green and blue
    np.testing.assert_allclose(canonical.adapt_input(rgb[:, :, ::-1], channels, "bgr").ravel(), expected)
    np.testing.assert_array_equal(canonical.adapt_input(rgb, 3, "bgr"), rgb)


def test_adapt_input_of_other_kernels():
    with pytest.raises(CheckpointError, match="3 input channels"):
        canonical.adapt_input(np.zeros((3, 3, 4, 8)), 2)
