"""Dense detectors as Keras models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from resfit.errors import ArgumentError
from resfit.networks import catalog as networks
from resfit.networks.detection import anchors, arithmetic, boxes, build, catalog
from resfit.networks.detection.layers import CropToMatch
from resfit.networks.detection.spec import DetectorSpec
from resfit.preprocessing import InputSpec
from resfit.weights import canonical
from tests.numeric import randomize

TINY = networks.get("resnet10_tiny").spec


def small(**changes) -> DetectorSpec:
    """A detector that is built in a moment."""
    fields = {"classes": 3, "pyramid_width": 16, "head_width": 16, "norm_groups": 4, "head_depth": 1, "candidates": 40}
    return catalog.light(TINY, **{**fields, **changes})


ATSS = small(
    anchor_sizes=tuple((8 * 2**level,) for level in (3, 4, 5, 6)),
    box_coding="deltas",
    delta_stds=(0.1, 0.1, 0.2, 0.2),
    anchor_offset=0.0,
    quality_rule="product",
    extra_activation=False,
)
GFL = small(box_coding="distribution", quality=None, anchor_offset=0.0, extra_activation=False)
#: One detector of each kind that the fields can say.
SPECS = {
    "light": small(),
    "atss": ATSS,
    "gfl": GFL,
    "fcos": small(distance_activation="relu", level_scales=False, anchor_stride="grid", anchor_offset=0.0),
    "retinanet": small(
        quality=None,
        level_scales=False,
        box_coding="deltas",
        anchor_sizes=anchors.octave_sizes((32, 64, 128, 256)),
        anchor_ratios=(0.5, 1.0, 2.0),
        head_norm="none",
        head_bias=True,
        extra_input="c5",
    ),
    "batch norms": small(pyramid_norm="batch", head_norm="batch"),
    "no extra levels": small(levels=(3, 4), anchor_sizes=((8,), (16,))),
    "one level": small(levels=(4,), anchor_sizes=((16,),)),
    "straight to the outputs": small(head_depth=0),
}


@pytest.mark.parametrize("name", SPECS)
def test_every_kind_counts_decodes_and_fits_odd_images(name):
    spec = SPECS[name]
    model = randomize(build.build(spec, preprocess=True, input_spec=InputSpec()))
    counted = arithmetic.count(spec, input_size=(75, 50))
    assert model.count_params() == counted.parameters
    named = {layer.name: layer for layer in model.layers}
    for layer in counted.layers:
        assert named[layer.name].count_params() == layer.parameters, layer.name
    assert {layer.name for layer in model.layers if layer.weights} == {layer.name for layer in counted.layers}
    x = np.random.default_rng(0).integers(0, 256, (2, 75, 50, 3), dtype=np.uint8)
    found = {key: np.asarray(value) for key, value in model(x).items()}
    assert found["boxes"].shape == (2, counted.boxes, 4)
    assert found["scores"].shape == (2, counted.boxes, 3)
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    assert found["boxes"].min() >= 0
    assert (found["boxes"].max(axis=(0, 1)) <= [50, 75, 50, 75]).all()
    assert 0 <= found["scores"].min() < found["scores"].max() <= 1
    assert not np.allclose(found["boxes"][0], found["boxes"][1])


@pytest.mark.parametrize("name", ["light", "atss", "gfl", "fcos", "retinanet"])
def test_boxes_and_scores_are_what_the_raw_outputs_stand_for(name):
    """Decoded by numpy, on anchors of numpy."""
    spec = SPECS[name]
    model, raw = build.build(spec), build.build(spec, outputs="raw")
    canonical.fill(raw, canonical.arrays(randomize(model)))
    x = np.random.default_rng(0).normal(0, 1, (1, 50, 75, 3)).astype(np.float32)
    found, said = ({key: np.asarray(value)[0] for key, value in one(x).items()} for one in (model, raw))
    own = np.concatenate(anchors.anchors(spec, (50, 75)))
    size, centre = own[:, 2:] - own[:, :2], (own[:, 2:] + own[:, :2]) / 2
    codes = said["box_codes"]
    if spec.box_coding == "deltas":
        codes = codes * np.array(spec.delta_stds, np.float32)
        middle, half = centre + codes[:, :2] * size, np.exp(np.minimum(codes[:, 2:], np.log(62.5))) * size / 2
        expected = np.concatenate([middle - half, middle + half], axis=1)
    else:
        if spec.box_coding == "distribution":
            shares = np.exp(codes.reshape(-1, 4, 17))
            codes = (shares / shares.sum(axis=-1, keepdims=True)) @ np.arange(17)
        expected = np.concatenate([centre - codes[:, :2] * size, centre + codes[:, 2:] * size], axis=1)
    expected = np.clip(expected, 0, [75, 50, 75, 50])
    np.testing.assert_allclose(found["boxes"], expected, atol=1e-3)
    scores = 1 / (1 + np.exp(-said["class_logits"]))
    if spec.quality:
        scores = scores / (1 + np.exp(-said["quality"]))
        scores = np.sqrt(scores) if spec.quality_rule == "geometric_mean" else scores
    np.testing.assert_allclose(found["scores"], scores, atol=1e-6)


def test_pyramid_and_head_on_stored_maps_are_those_of_the_whole():
    spec = SPECS["light"]
    whole = randomize(build.build(spec, outputs="raw"))
    head = build.build_on_maps(spec)
    stored = canonical.arrays(whole)
    canonical.fill(head, stored, ignore=("conv*", "post*"))
    x = np.random.default_rng(0).normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    body = keras.Model(whole.input, {tap: whole.get_layer(name).output for tap, name in _ends(spec).items()})
    expected = {key: np.asarray(value) for key, value in whole(x).items()}
    received = head({key: np.asarray(value) for key, value in body(x).items()})
    for key, value in expected.items():
        np.testing.assert_allclose(np.asarray(received[key]), value, atol=1e-5)
    assert {*canonical.arrays(head)} < {*stored}


def _ends(spec: DetectorSpec) -> dict[str, str]:
    """The layers that the taps of a plain network end in."""
    return {tap: f"conv{tap[-1]}_block{spec.backbone.depths[int(tap[-1]) - 2]}_out" for tap in spec.taps.values()}


@pytest.mark.parametrize("name", ["resnet50v2", "resnetv2_18d", "resnet26d", "resnetblur18", "test_resnet", "resnet20"])
def test_other_backbones_have_the_maps_that_the_arithmetic_says(name):
    spec = catalog.light(
        networks.get(name).spec, classes=2, pyramid_width=16, head_width=16, norm_groups=4, head_depth=1
    )
    model = build.build(spec)
    counted = arithmetic.count(spec, input_size=(75, 50))
    assert model.count_params() == counted.parameters
    found = model(np.zeros((1, 75, 50, 3), np.float32))
    assert found["boxes"].shape == (1, counted.boxes, 4)
    assert found["boxes"].shape[1] == sum(map(len, anchors.anchors(spec, (75, 50))))


def test_a_stem_that_rounds_down_has_the_maps_that_the_arithmetic_says():
    """Average pooling without padding, CLIP's: a side of 77 is 39, then 19 and not 20."""
    body = networks.get("test_resnet").spec.replace(stem_pool="avg")
    spec = catalog.light(body, pyramid_width=16, head_width=16, norm_groups=4, head_depth=1)
    assert anchors.grid_sizes(spec, (77, 53))[0] == (10, 7)
    assert anchors.grid_sizes(spec, (66, 90))[0] == (8, 11)
    model = build.build(spec)
    for size in ((77, 53), (66, 90), (64, 64)):
        found = model(np.zeros((1, *size, 3), np.float32))
        assert found["boxes"].shape[1] == arithmetic.count(spec, input_size=size).boxes


def test_a_fresh_detector_starts_at_its_prior():
    raw = build.build(SPECS["light"], outputs="raw")
    assert np.asarray(raw.get_layer("class_logits_conv").bias) == pytest.approx(-np.log(99))
    assert not np.asarray(raw.get_layer("box_codes_conv").bias).any()
    x = np.random.default_rng(0).normal(0, 1, (1, 64, 64, 3)).astype(np.float32)
    scores = 1 / (1 + np.exp(-np.asarray(raw(x)["class_logits"])))
    assert scores.mean() == pytest.approx(0.01, rel=0.1)


def test_doubling_and_cutting_is_torchs_nearest_interpolation():
    torch = pytest.importorskip("torch")
    for coarse in (1, 2, 3, 7, 13, 39):
        for fine in (2 * coarse - 1, 2 * coarse):
            x = np.random.default_rng(coarse).normal(0, 1, (1, coarse, coarse + 1, 2)).astype(np.float32)
            like = np.zeros((1, fine, 2 * coarse + 2, 2), np.float32)
            doubled = keras.layers.UpSampling2D(2, interpolation="nearest")(x)
            found = np.asarray(CropToMatch()([doubled, like]))
            size = (fine, 2 * coarse + 2)
            their = torch.nn.functional.interpolate(torch.tensor(x.transpose(0, 3, 1, 2)), size=size, mode="nearest")
            assert np.array_equal(found, their.numpy().transpose(0, 2, 3, 1))


def test_detections_survive_a_file_and_fixed_sizes(tmp_path):
    spec = SPECS["light"]
    model = randomize(build.build(spec, outputs="detections"))
    model.save(tmp_path / "detector.keras")
    again = keras.saving.load_model(tmp_path / "detector.keras")
    x = np.random.default_rng(0).normal(0, 1, (2, 75, 50, 3)).astype(np.float32)
    expected = {key: np.asarray(value) for key, value in model(x).items()}
    fixed = build.build(spec, outputs="detections", input_shape=(75, 50, 3))
    canonical.fill(fixed, canonical.arrays(model))
    assert expected["count"].min() > 0
    for other in (again(x), fixed(x)):
        for key, value in expected.items():
            np.testing.assert_allclose(np.asarray(other[key]), value, atol=1e-4)


def test_the_suppression_stands_on_any_model_of_boxes_and_scores():
    spec = SPECS["light"].replace(max_detections=20)
    model, detections = build.build(spec), build.build(spec, outputs="detections")
    canonical.fill(detections, canonical.arrays(randomize(model)))
    x = np.random.default_rng(0).normal(0, 1, (1, 64, 64, 3)).astype(np.float32)
    apart = build.suppression(spec.replace(candidates=400))(model(x))
    for key, value in detections(x).items():
        np.testing.assert_allclose(np.asarray(apart[key]), np.asarray(value), atol=1e-4)


def test_mixed_precision_decodes_in_float32():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = build.build(SPECS["light"])
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    assert model.get_layer("box_1_conv").compute_dtype == "bfloat16"
    found = model(np.random.default_rng(0).normal(0, 1, (1, 64, 96, 3)).astype(np.float32))
    assert {str(value.dtype) for value in found.values()} <= {"<dtype: 'float32'>", "float32"}
    # distances are exp(about 0) strides around the middles of cells, which bfloat16 could not tell at this place
    right = np.asarray(found["boxes"])[0, 11]
    assert right[2] - right[0] == pytest.approx(2 * 8 * 0.6, rel=0.4)


def test_gradients_reach_every_weight_and_are_finite_without_objects():
    tf = pytest.importorskip("tensorflow")
    for name in ("light", "atss", "gfl"):
        raw = build.build(SPECS[name], outputs="raw")
        with tf.GradientTape() as tape:
            said = raw(np.random.default_rng(0).normal(0, 1, (1, 64, 64, 3)).astype(np.float32), training=True)
            loss = sum(ops.mean(ops.softplus(value)) for value in said.values())
        gradients = tape.gradient(loss, raw.trainable_variables)
        for variable, gradient in zip(raw.trainable_variables, gradients, strict=True):
            assert gradient is not None, variable.path
            assert np.isfinite(np.asarray(gradient)).all(), variable.path


def test_one_image_is_learned():
    """A box of known place is found after some steps: head, codes and suppression speak of the same boxes."""
    pytest.importorskip("tensorflow")
    spec = SPECS["light"].replace(score_threshold=0.3)
    keras.utils.set_random_seed(0)
    raw = build.build_on_maps(spec)
    generator = np.random.default_rng(0)
    maps = {
        tap: generator.normal(0, 1, (1, 64 // 2**level, 96 // 2**level, build.tap_width(spec, tap))).astype(np.float32)
        for level, tap in spec.taps.items()
    }
    target = np.array([20.0, 10, 50, 44], np.float32)
    own = np.concatenate(anchors.anchors(spec, (64, 96)))
    centre = (own[:, :2] + own[:, 2:]) / 2
    sides = own[:, 2] - own[:, 0]
    inside = (np.abs(centre - [35, 27]).max(axis=1) < 9) & (sides == 8)
    assert inside.sum() >= 4
    labels = np.zeros((len(own), 3), np.float32)
    labels[inside, 1] = 1
    optimizer = keras.optimizers.Adam(0.01)
    import tensorflow as tf

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            said = raw(maps, training=True)
            found = boxes.decode_distances(said["box_codes"][0], ops.convert_to_tensor(own))
            overlap = boxes.giou(
                found[inside], ops.convert_to_tensor(target[None] * np.ones((inside.sum(), 1), "float32"))
            )
            entropy = keras.losses.binary_crossentropy(labels, said["class_logits"][0], from_logits=True)
            quality = ops.sum(ops.softplus(-said["quality"][0][inside]))
            loss = ops.sum(entropy) + ops.sum(1 - overlap) + quality
        optimizer.apply(tape.gradient(loss, raw.trainable_variables), raw.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(80)]
    assert losses[-1] < losses[0] / 5
    said = raw(maps)
    scores = ops.sqrt(ops.sigmoid(said["class_logits"]) * ops.sigmoid(said["quality"]))
    decoded = boxes.decode_distances(said["box_codes"], ops.convert_to_tensor(own))
    found = build.suppression(spec)({"boxes": decoded, "scores": scores})
    assert np.asarray(found["count"]).tolist() == [1]
    assert np.asarray(found["classes"])[0, 0] == 1
    assert float(boxes.iou(found["boxes"][0, 0], target)) > 0.8


def test_unknown_outputs_are_refused():
    with pytest.raises(ArgumentError, match="outputs"):
        build.build(SPECS["light"], outputs="box")


@pytest.mark.slow
def test_other_runtimes_detect_alike(tmp_path):
    """Decoding and suppression in the graph, at sizes that the graph does not fix."""
    openvino, tf = pytest.importorskip("openvino"), pytest.importorskip("tensorflow")
    model = randomize(build.build(SPECS["light"], outputs="detections"))
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    openvino.save_model(openvino.convert_model(tmp_path / "saved"), tmp_path / "m.xml", compress_to_fp16=False)
    compiled = openvino.Core().compile_model(tmp_path / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    lite = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
    for size in ((75, 50), (64, 96), (97, 131)):
        x = np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype(np.float32)
        expected = {key: np.asarray(value) for key, value in model(x).items()}
        assert expected["count"].min() > 50
        interpreter = tf.lite.Interpreter(model_content=lite)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
        runner = interpreter.get_signature_runner()
        for found in (compiled([x]), runner(**dict.fromkeys(runner.get_input_details(), x))):
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, atol=1e-3, err_msg=key)


@pytest.mark.slow
def test_onnx_runtime_detects_alike(tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = randomize(build.build(SPECS["light"], outputs="detections", input_shape=(75, 50, 3)))
    x = np.random.default_rng(0).normal(0, 1, (2, 75, 50, 3)).astype(np.float32)
    expected = {key: np.asarray(value) for key, value in model(x).items()}
    model.export(tmp_path / "m.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = dict(
        zip(
            [one.name for one in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: x}),
            strict=True,
        )
    )
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-3, err_msg=key)
