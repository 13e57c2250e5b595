import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.explain import METHODS, attribute
from resfit.explain.graph import ExplainableGraph
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.heads.linear import LinearHead
from resfit.tasks.classification.heads.mlp import MlpHead
from tests.numeric import images, relative_error
from tests.training.networks import small_body

CAMS = tuple(name for name, method in METHODS.items() if method.reads_maps)


@pytest.fixture(scope="module")
def body():
    return small_body()


@pytest.fixture(scope="module")
def pixels():
    return images(3, 32, 32, 3)


def linear_head(activation="softmax", seed=3):
    random = np.random.default_rng(seed)
    kernel = random.normal(0, 0.5, (48, 4)).astype(np.float32)
    return LinearHead(kernel, random.normal(0, 0.1, 4).astype(np.float32), 1.0, activation=activation)


def mlp_head(seed=4):
    random = np.random.default_rng(seed)
    kernels = random.normal(0, 0.3, (48, 16)), random.normal(0, 0.5, (16, 4))
    biases = random.normal(0, 0.1, 16), random.normal(0, 0.1, 4)
    return MlpHead(*(tuple(part.astype(np.float32) for part in parts) for parts in (kernels, biases)))


@pytest.fixture(scope="module")
def model(body):
    return base.attach(body, linear_head())[0]


def last_maps(body, pixels):
    import keras

    tapped = keras.Model(body.inputs[0], body.get_layer("avg_pool").input)
    return np.asarray(tapped(pixels.astype("float32"), training=False), np.float64)


# against computations of another kind


def test_grad_cam_on_a_linear_head_is_the_class_activation_map(body, model, pixels):
    maps, kernel = last_maps(body, pixels), linear_head().kernel
    found = attribute(model, pixels, target=[0, 1, 3], stage="stage4")
    cells = maps.shape[1] * maps.shape[2]
    for one, own, target in zip(found, maps, (0, 1, 3), strict=True):
        assert relative_error(one.raw, own @ kernel[:, target] / cells) < 1e-4
        assert one.target == target


def test_grad_cam_through_a_hidden_layer_is_the_chain_rule(body, pixels):
    head = mlp_head()
    model = base.attach(body, head)[0]
    maps = last_maps(body, pixels)
    cells = maps.shape[1] * maps.shape[2]
    features = maps.mean(axis=(1, 2))
    alive = features @ head.kernels[0] + head.biases[0] > 0
    slopes = (alive * head.kernels[1][:, 2]) @ head.kernels[0].T / cells
    found = attribute(model, pixels, target=2, stage="stage4")
    assert relative_error([one.raw for one in found], np.einsum("nhwc,nc->nhw", maps, slopes)) < 1e-4


def test_grad_cam_pp_on_a_linear_head(body, model, pixels):
    maps, kernel = last_maps(body, pixels), linear_head().kernel.astype(np.float64)
    cells = maps.shape[1] * maps.shape[2]
    slopes = kernel[:, 1] / cells
    alphas = slopes**2 / (2 * slopes**2 + maps.sum(axis=(1, 2)) * slopes**3)
    weights = cells * alphas * np.maximum(slopes, 0)
    found = attribute(model, pixels, method="grad-cam++", target=1, stage="stage4")
    assert relative_error([one.raw for one in found], np.einsum("nhwc,nc->nhw", maps, weights)) < 1e-4


def test_grad_cam_of_an_inner_stage_by_differences(body, pixels):
    """The slope of the score in one channel of a map, all cells alike, by pushing that channel."""
    import keras

    twin_input = keras.Input((16, 16, 32))
    x = twin_input
    names = [layer.name for layer in body.layers]
    start = names.index("conv2_block1_out")
    above = {name: value for name, value in zip(names[start + 1 :], body.layers[start + 1 :], strict=True)}
    outputs = {"conv2_block1_out": x}
    from resfit.training.boundary import parents

    for name, sources in parents(body).items():
        if name in above:
            values = [outputs[source] for source in sources]
            outputs[name] = above[name](values if len(values) > 1 else values[0])
    rest = keras.Model(twin_input, outputs["avg_pool"])
    first = keras.Model(body.inputs[0], body.get_layer("conv2_block1_out").output)
    maps = np.asarray(first(pixels[:1].astype("float32"), training=False), np.float64)
    kernel = linear_head().kernel[:, 0]

    def score(values):
        return np.asarray(rest(values.astype("float32"), training=False), np.float64) @ kernel

    step = 1e-2
    pushed = np.repeat(maps, 32, axis=0)
    pushed[np.arange(32), :, :, np.arange(32)] += step
    pulled = np.repeat(maps, 32, axis=0)
    pulled[np.arange(32), :, :, np.arange(32)] -= step
    weights = (score(pushed) - score(pulled)) / (2 * step) / (16 * 16)
    model = base.attach(body, linear_head())[0]
    raw = attribute(model, pixels[:1], target=0, stage="stage2")[0].raw
    assert raw.shape == (16, 16)
    assert relative_error(raw, maps[0] @ weights) < 0.02


def test_eigen_cam_is_the_first_component(body, model, pixels):
    found = attribute(model, pixels, method="eigen-cam", stage="stage4")
    for one, own in zip(found, last_maps(body, pixels), strict=True):
        rows = own.reshape(-1, own.shape[-1])
        left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        expected = (left[:, 0] * values[0]).reshape(own.shape[:2])
        expected *= np.sign((expected**3).sum())
        assert relative_error(one.raw, expected) < 1e-4


@pytest.mark.parametrize("baseline", [0, "blur"])
def test_integrated_gradients_are_complete(body, pixels, baseline):
    from scipy.ndimage import gaussian_filter

    head = linear_head("sigmoid")
    found = attribute(
        base.attach(body, head)[0], pixels[:2], method="integrated-gradients", target=1, baseline=baseline
    )
    logits = base.attach(body, head, logits=True)[0]
    for image, one in zip(pixels[:2].astype("float32"), found, strict=True):
        nothing = np.zeros_like(image) if baseline == 0 else gaussian_filter(image, (2, 2, 0), mode="nearest")
        low, high = np.asarray(logits(np.stack([nothing, image]), training=False))[:, 1]
        assert abs(high - low) > 1e-3
        assert one.raw.sum() == pytest.approx(high - low, rel=0.01)
        assert one.gap == pytest.approx(abs(one.raw.sum() - (high - low)) / abs(high - low), abs=2e-3)
        assert one.raw.min() < 0 < one.raw.max()


def pooled_pixels():
    """A network whose score is the mean over the image of a weighted sum of its colours."""
    import keras

    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 1, use_bias=False, name="mix")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.1, weight.shape) for weight in model.get_weights()])
    mix, dense, _ = model.get_weights()
    return model, mix[0, 0] @ dense


def test_occlusion_is_the_fall_of_the_score():
    model, colours = pooled_pixels()
    image = images(1, 12, 9, 3)
    found = attribute(model, image, method="occlusion", target=1, patch=3, stride=3, fill=0, batch_size=4)[0].raw
    lost = image[0].astype(float) @ colours[:, 1] / (12 * 9)
    expected = np.kron(lost.reshape(4, 3, 3, 3).sum(axis=(1, 3)), np.ones((3, 3)))
    assert relative_error(found, expected) < 1e-3


def test_integrated_gradients_of_a_linear_network_are_its_terms():
    model, colours = pooled_pixels()
    image = images(1, 12, 9, 3)
    found = attribute(model, image, method="integrated-gradients", target=0, baseline=10.0)[0]
    assert relative_error(found.raw, (image[0] - 10.0) @ colours[:, 0] / (12 * 9)) < 1e-4


# networks of other forms


@pytest.mark.parametrize("method", CAMS)
def test_models_inside_models_are_walked_through(body, model, pixels, method):
    import keras

    from resfit.training import boundary

    expected = attribute(model, pixels, method=method, stage="stage3")
    twin = boundary.copy(body)
    dense = keras.layers.Dense(4, activation="softmax")
    inputs = keras.Input((32, 32, 3))
    nested = keras.Model(inputs, dense(twin(keras.layers.Dropout(0.5)(inputs), training=False)))
    dense.set_weights([linear_head().kernel, linear_head().bias])
    wrapped = keras.Sequential([keras.Input((32, 32, 3)), nested])
    for other in (nested, wrapped):
        found = attribute(other, pixels, method=method, stage="stage3")
        assert relative_error([one.raw for one in found], [one.raw for one in expected]) < 1e-5
        assert found[0].stage == expected[0].stage
        np.testing.assert_allclose(found[0].probabilities, expected[0].probabilities, rtol=1e-5)


def test_stages_are_found_by_name_where_nothing_says_what_the_network_is(model, pixels):
    import keras

    bare = keras.Model(model.inputs, model.outputs)
    assert not hasattr(bare, "architecture")
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        known = attribute(model, pixels[:1], stage=stage)[0]
        assert attribute(bare, pixels[:1], stage=stage)[0].stage == known.stage
        assert attribute(bare, pixels[:1], stage=known.stage)[0].raw == pytest.approx(known.raw)


@pytest.mark.parametrize(("preactivation", "block"), [(True, "bottleneck"), (False, "basic")])
def test_the_last_map_is_what_the_pooling_reads(pixels, preactivation, block):
    body = small_body(preactivation=preactivation, block=block)
    model = base.attach(body, linear_head())[0]
    name = body.get_layer("avg_pool").input._keras_history.operation.name
    assert list(ExplainableGraph(model).maps((32, 32), 3))[-1] == name
    last = attribute(model, pixels, target=0, stage=name)
    expected = last_maps(body, pixels) @ linear_head().kernel[:, 0] / 16
    assert relative_error([one.raw for one in last], expected) < 1e-4


def test_the_default_stage_has_enough_cells(model):
    graph = ExplainableGraph(model)
    cells = graph.maps((32, 32), 3)
    assert cells[graph.layer_of(None, (32, 32), 3)] == (8, 8)  # that of the last stage has 4
    assert graph.layer_of(None, (32, 32), 3) == graph.layer_of("stage3", (32, 32), 3)
    assert graph.layer_of(None, (64, 64), 3) == list(cells)[-1]


def test_scores_and_probabilities_are_the_models(body, pixels):
    for activation in ("softmax", "sigmoid"):
        head = linear_head(activation)
        found = attribute(base.attach(body, head)[0], pixels)
        features = last_maps(body, pixels).mean(axis=(1, 2))
        np.testing.assert_allclose([one.scores for one in found], head.logits(features), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([one.probabilities for one in found], head.probabilities(features), rtol=1e-4)
        plain = attribute(base.attach(body, head, logits=True)[0], pixels)  # no activation: as they are
        assert relative_error([one.raw for one in plain], [one.raw for one in found]) < 1e-5


def test_heads_for_a_few_images(body, pixels):
    random = np.random.default_rng(0)
    rows, labels = random.normal(1, 1, (20, 48)).astype(np.float32), np.arange(20) % 4
    head = base.fit_head("nearest_mean", rows, labels, 4)
    model = base.attach(body, head)[0]
    found = attribute(model, pixels)
    features = last_maps(body, pixels).mean(axis=(1, 2)).astype(np.float32)
    np.testing.assert_allclose([one.probabilities for one in found], head.probabilities(features), rtol=1e-3)
    assert all(np.ptp(one.raw) > 0 for one in found)


# batches, ranges, errors


@pytest.mark.parametrize("method", [*CAMS, "occlusion"])
def test_batches_change_nothing_and_inputs_stay(model, pixels, method):
    before = pixels.copy()
    one_by_one = attribute(model, pixels, method=method, batch_size=1)
    for one, all_together in zip(one_by_one, attribute(model, pixels, method=method), strict=True):
        assert relative_error(one.raw, all_together.raw) < 1e-4
        assert one.map.shape == (32, 32)
        assert (one.map.min(), one.map.max()) >= (0, 0)
        assert one.map.max() == pytest.approx(1) or not one.map.any()
        assert one.map.dtype == one.raw.dtype == np.float32
    np.testing.assert_array_equal(pixels, before)


def test_a_float_copy_gives_the_same(model, pixels):
    found = attribute(model, pixels), attribute(model, pixels.astype(np.float64))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.raw, other.raw)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "gradcam"}, "Did you mean 'grad-cam"),
        ({"stage": "stage9"}, "stage must be a stage or a layer"),
        ({"stage": "avg_pool"}, "stage must be a stage or a layer"),
        ({"method": "occlusion", "stage": "stage2"}, "stage is for the methods that read"),
        ({"patch": 3}, "takes no options"),
        ({"method": "occlusion", "path": 3}, "Did you mean 'patch'"),
        ({"method": "occlusion", "patch": 40}, r"1\.\.32"),
        ({"method": "integrated-gradients", "baseline": "blue"}, "Did you mean 'blur'"),
        ({"method": "integrated-gradients", "baseline": np.zeros(5)}, "must fit an image"),
        ({"method": "integrated-gradients", "tolerance": 0}, "tolerance must be positive"),
        ({"target": 4}, r"0\.\.3"),
        ({"target": [0, 1]}, "one for each of the 3 images"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_arguments(model, pixels, changes, text):
    with pytest.raises(ArgumentError, match=text):
        attribute(model, pixels, **changes)


def test_a_network_without_classes_is_refused(pixels):
    import keras

    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3)(inputs))
    with pytest.raises(ArgumentError, match="one output"):
        attribute(model, pixels)
