"""Networks that are found by their objects: what is read equals what the program that wrote it computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from resfit.errors import CheckpointError
from resfit.weights import load
from resfit.weights.formats import saved_graph, saved_model
from tests import fuzzing
from tests.numeric import images as random_images
from tests.numeric import relative_error
from tests.weights import reading
from tests.weights.test_saved_model import TOLERANCE, pixels

tf_modules = pytest.importorskip("tests.weights.tf_modules", reason="the Keras that these programs used")


def features(source, images):
    model = load.load_source(source, include_top=False, pooling="avg", preprocess=False)
    return np.asarray(model(images)), model


def logits(source, images):
    model = load.load_source(source, preprocess=False, classifier_activation=None)
    return np.asarray(model(images)), model


# SimCLR.


@pytest.mark.parametrize("how", ["saved_model", "checkpoint"])
def test_simclr_computes_the_same(how, tmp_path):
    images, network = pixels(64, 57), tf_modules.simclr()
    expected = network(tf.constant(images), training=False)[1]
    if how == "saved_model":
        tf_modules.save_simclr(network, tmp_path)
    else:
        optimizer = tf_modules.tf_keras.optimizers.legacy.SGD(0.1, 0.9)
        weights = network.trainable_variables
        optimizer.apply_gradients((tf.zeros_like(weight), weight) for weight in weights)
        step = optimizer.iterations
        tf.train.Checkpoint(model=network, global_step=step, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    received, model = logits(tmp_path, images)
    assert relative_error(received, expected) < TOLERANCE
    spec = model.architecture
    assert (spec.depths, spec.stem_pool_padding, spec.stride_in_block) == ((2, 1), "same", "spatial")
    assert (spec.norm_epsilon, spec.padding) == (1e-5, "symmetric")
    contract = model.input_spec
    assert (contract.scale, contract.mean, contract.interpolation) == (1 / 255, (0, 0, 0), "bicubic")
    assert any("slots of an optimiser" in text for text in model.assumptions) == (how == "checkpoint")


def test_simclr_for_cifar_computes_the_same(tmp_path):
    images, network = pixels(32, 32), tf_modules.simclr(basic=True, small=True, classes=0, depths=(1, 1))
    tf_modules.save_simclr(network, tmp_path)
    received, model = features(tmp_path, images)
    assert relative_error(received, network(tf.constant(images), training=False)[0]) < TOLERANCE
    assert (model.architecture.block, model.architecture.stem_pool) == ("basic", "none")


@pytest.mark.parametrize(("selector", "kept"), [(0, True), (1, False)])
def test_simclrs_classifier_is_taken_only_where_it_stands_on_the_features(selector, kept, tmp_path):
    """A layer of the projection head is as wide as the features: shapes alone would let it pass."""
    images, network = pixels(), tf_modules.simclr(projections=1, selector=selector, depths=(1, 1))
    tf_modules.save_simclr(network, tmp_path)
    source = load.read_source(tmp_path)
    assert source.has_top == kept
    assert any("a projection head" in text for text in source.assumptions)
    told = "left out the classifier: it stands on the projection head"
    assert (told in source.assumptions) != kept
    body, head = network(tf.constant(images), training=False)
    assert relative_error(features(tmp_path, images)[0], body) < TOLERANCE
    if kept:
        assert relative_error(logits(tmp_path, images)[0], head) < TOLERANCE
        return
    graph = tmp_path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="graph must be whole"):
        load.read_source(tmp_path)
    graph.unlink()
    assert saved_graph.origins(tmp_path, re.compile(".*")) == set()


def test_a_checkpoint_of_simclr_does_not_tell_what_its_classifier_stands_on(tmp_path):
    tf.train.Checkpoint(model=tf_modules.simclr(projections=1, depths=(1, 1))).save(str(tmp_path / "ckpt"))
    source = load.read_source(tmp_path)
    assert not source.has_top
    assert "left out the classifier: whether it stands on the projection head is not told" in source.assumptions


def graph(folder: Path) -> Path:
    """A SavedModel's graph of one function: a classifier on pooled features, which are handed on."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    written = SavedModel()
    function = written.meta_graphs.add().graph_def.library.function.add()
    nodes = {
        "pool": ("Mean", "images"),
        "pool/Identity": ("Identity", "pool:output:0"),
        "head_supervised/dense/MatMul": ("MatMul", "pool/Identity:output:0"),
        "projection_head/dense/MatMul": ("MatMul", "images"),
    }
    for name, (operation, first) in nodes.items():
        function.node_def.add(name=name, op=operation, input=[first, "weights", "^control"])
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(written.SerializeToString())
    return folder


def test_origins_are_found_through_what_hands_on(tmp_path):
    folder = graph(tmp_path / "model")
    assert reading.origins(folder) == {"Mean", ""}
    assert saved_graph.origins(folder, re.compile("head_.*MatMul")) == {"Mean"}
    assert saved_graph.origins(folder, re.compile("nothing")) == set()


def test_a_graph_of_nothing_but_fields_is_refused(tmp_path):
    """Two bytes a function, 1,000,001 of them."""
    content = b"\x0a\x00" * 1_000_001
    for _ in range(3):
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        content = b"\x12" + bytes([*length, size]) + content
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(CheckpointError, match="more than 1000000 fields"):
        reading.origins(tmp_path)


def test_damaged_graphs_are_refused_or_read(tmp_path):
    result = fuzzing.survive("tests.weights.reading:origins", [graph(tmp_path / "model")], tmp_path)
    assert result["read"] + result["refused"] == fuzzing.FEW
    assert result["refused"] > fuzzing.FEW / 7


@pytest.mark.slow
def test_many_damaged_graphs(tmp_path):
    source = graph(tmp_path / "model")
    print(fuzzing.survive("tests.weights.reading:origins", [source], tmp_path, count=50_000, seed=1))


# SupCon.


@pytest.mark.parametrize("basic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_supcons_features_are_those_of_the_module(basic, tmp_path):
    tf_layers = pytest.importorskip("tests.weights.tf_layers")
    raw = random_images(2, 64, 57, 3)
    expected, scaled = tf_layers.write_supcon(tmp_path / "module", raw.astype(np.float32) / 255, basic=basic)
    model = load.load_source(tmp_path / "module", include_top=False, pooling="avg")
    assert relative_error(model(raw), expected) < TOLERANCE
    source = load.read_source(tmp_path / "module")
    assert not source.has_top
    assert scaled.shape == (2, 7)
    assert any("left out a classifier of features that are scaled to length 1" in text for text in source.assumptions)
    assert (source.spec.depths, source.spec.block) == ((2, 1), "basic" if basic else "bottleneck")


# BiT as Keras keeps it.


@pytest.mark.parametrize(
    "how", ["checkpoint", *(pytest.param(how, marks=pytest.mark.slow) for how in ("alone", "inside", "features"))]
)
def test_bit_of_keras_computes_the_same(how, tmp_path):
    images, network = pixels(), tf_modules.bit(**({"depths": (1, 1, 1, 1)} if how == "features" else {}))
    saved = tf_modules.wrapped(network, how)
    expected = np.asarray(saved(tf.constant(images)))
    if how == "checkpoint":
        tf.train.Checkpoint(model=saved).save(str(tmp_path / "ckpt"))
    else:
        saved.save(tmp_path, save_format="tf")
    received, model = features(tmp_path, images) if how == "features" else logits(tmp_path, images)
    assert relative_error(received, expected) < TOLERANCE
    spec = model.architecture
    assert (spec.norm, spec.weight_standardization, spec.preactivation) == ("group", True, True)
    assert model.input_spec.normalize(np.full((2, 2, 3), 255, np.uint8)).max() == pytest.approx(1)


def test_ways_that_say_most_are_found():
    """The lists that Keras keeps of all variables are shorter ways, and say nothing."""
    children = [
        [("variables", 1), ("model", 2)],
        [("0", 4), ("1", 5)],
        [("layer-1", 3), ("layer_with_weights-0", 3), ("_head", 6)],
        [("kernel", 4)],
        [],
        [],
        [("kernel", 5), ("model", 2)],
    ]
    keys = [[], [], [], [], ["a"], ["b"], []]
    assert saved_model._ways(children, keys) == {"a": "model/layer_with_weights-0/kernel", "b": "model/_head/kernel"}


def test_ways_through_hostile_objects_take_no_memory():
    """Names of megabytes, endless chains and millions of objects."""
    long = [[("x" * 101, 1)], [("kernel", 2)], []]
    assert saved_model._ways(long, [[], [], ["a"]]) == {}
    chain = [[("x", number + 1)] for number in range(40)] + [[("x", 0)]]
    found = saved_model._ways(chain, [[f"k{number}"] for number in range(41)])
    assert (len(found), max(map(len, found.values()))) == (33, 63)
    with pytest.raises(ValueError, match="more than 200000 objects"):
        saved_model._objects(b"\x0a\x00" * 200_001, ())
