import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from resfit import cache_kinds as cache
from resfit import engines
from resfit.engines import int8, openvino
from resfit.errors import ArgumentError, MissingDependencyError
from tests.numeric import images as random_images
from tests.numeric import randomize
from tests.pictures import tiny_body
from tests.specs import shortened

FAST = ["openvino", "onnxruntime", "litert"]


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def images():
    return random_images(5, 16, 16, 3)


@pytest.fixture(scope="module")
def running(body):
    for package in ("onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    return {name: engines.create(body, name) for name in ["keras", *FAST]}


@pytest.mark.parametrize("name", ["keras", *FAST])
def test_engines_agree(body, images, running, name):
    expected = body.predict(images, verbose=0)
    engine = running[name]
    assert (engine.name, engine.precision) == (name, "float32")
    rows = engine.run(images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert engine.name == name  # it was not given up
    assert engines.agreement(rows, expected) > 0.999999


@pytest.mark.parametrize("name", ["keras", *FAST])
def test_uint8_is_its_float_copy(images, running, name):
    engine = running[name]
    before = images.copy()
    np.testing.assert_array_equal(engine.run(images), engine.run(images.astype(np.float32)))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", ["keras", *FAST])
def test_batches_of_any_size_and_results_that_last(images, running, name):
    engine = running[name]
    whole = engine.run(images)
    kept = whole.copy()
    single = np.concatenate([engine.run(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(single, whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(engine.run(np.concatenate([images] * 30)), np.concatenate([whole] * 30), rtol=1e-4)
    np.testing.assert_array_equal(whole, kept)  # not a view of the engine's memory
    assert engine.run(images[:0]).shape == (0, whole.shape[1])  # also where the runtime takes no empty batch


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_stream_is_run_in_order(images, running, name):
    batches = [(number, images[number : number + size]) for number, size in enumerate((1, 4, 2, 1, 1))]
    fetched = []

    def coming():
        for tag, batch in batches:
            fetched.append(tag)
            yield tag, batch

    seen = []
    for tag, rows in engines.stream(running[name], coming()):
        assert len(fetched) <= tag + 3  # bounded: it does not run ahead of who uses the rows
        np.testing.assert_allclose(rows, running[name].run(batches[tag][1]), rtol=1e-5, atol=1e-6)
        seen.append(tag)
    assert seen == list(range(5))


def test_threads_share_an_engine(images, running):
    from concurrent.futures import ThreadPoolExecutor

    engine = running["openvino"]
    expected = engine.run(images)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(engine.run, [images] * 24):
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform does not tell affinities")
def test_a_number_of_threads_is_not_pinned_to_cores(body, images, tmp_path):
    """Pinned, two processes with one thread each would share one core."""
    program = f"""
import os, pathlib, threading
import numpy as np
from resfit.engines.openvino import OpenVinoEngine

engine, everywhere, pinned = OpenVinoEngine(pathlib.Path({str(tmp_path)!r}), threads=1), os.sched_getaffinity(0), set()
images = np.zeros((64, 64, 64, 3), np.float32)
work = threading.Thread(target=lambda: [engine.run(images) for _ in range(10)])
work.start()
while work.is_alive():  # threads are pinned while they compute
    for thread in os.listdir("/proc/self/task"):
        try:
            if os.sched_getaffinity(int(thread)) != everywhere:
                pinned.add(thread)
        except ProcessLookupError:
            pass
print(len(pinned))
"""
    openvino.convert(body, tmp_path)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_conversion_is_kept_and_made_again_when_damaged(body, images, tmp_path, name):
    expected = engines.create(body, name, cache=tmp_path).run(images)
    (item,) = cache.find(tmp_path, kinds=["engines"])
    assert item.about["agreement"] > 0.999999
    assert (item.about["agreement_images"], item.about["conversion"]) == (4, "layers")
    (network,) = [path for path in item.path.iterdir() if path.suffix in (".xml", ".onnx")]
    stamp = network.stat().st_mtime_ns
    engines.create(body, name, cache=tmp_path)
    assert network.stat().st_mtime_ns == stamp
    network.write_bytes(network.read_bytes()[:200])
    np.testing.assert_array_equal(engines.create(body, name, cache=tmp_path).run(images), expected)
    assert len(cache.find(tmp_path, kinds=["engines"])) == 1
    engines.create(tiny_body(seed=1), name, cache=tmp_path)
    assert len(cache.find(tmp_path, kinds=["engines"])) == 2
    assert len(cache.prune(tmp_path, older_than=1).deleted) == 0
    gc.collect()  # the engines are gone, so that nobody uses what they were made from
    assert len(cache.prune(tmp_path).deleted) == 2
    assert cache.find(tmp_path, kinds=["engines"]) == []


def test_a_cache_that_cannot_be_written_costs_only_time(body, images, tmp_path):
    (tmp_path / "engines").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="nothing is kept for the next run"):
        engine = engines.create(body, "openvino", cache=tmp_path)
    np.testing.assert_allclose(engine.run(images), body.predict(images, verbose=0), rtol=1e-4, atol=1e-5)
    assert engine.name == "openvino"


def test_engine_that_disagrees_is_given_up(body, images, tmp_path):
    class Wrong:
        name = "wrong"
        precision = "float32"

        def run(self, images):
            return np.roll(engines.create(body, "keras").run(images), 1, axis=1)

    checked = engines._Checked(Wrong(), engines.create(body, "keras"))
    with pytest.warns(UserWarning, match=r"wrong must agree .* Going on with Keras"):
        rows = checked.run(images)
    np.testing.assert_array_equal(rows, engines.create(body, "keras").run(images))
    assert checked.name == "keras"


def test_disagreement_is_remembered(body, images, tmp_path):
    engines.create(body, "openvino", cache=tmp_path).run(images)
    (item,) = cache.find(tmp_path, kinds=["engines"])
    about = item.path / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "agreement": 0.5}))
    with pytest.warns(UserWarning, match=r"openvino must agree .* Received: 0.500000. Going on with Keras"):
        assert engines.create(body, "openvino", cache=tmp_path).name == "keras"


def test_agreement_of_zeros_and_of_nonsense():
    assert engines.agreement(np.zeros((2, 3)), np.zeros((2, 3))) == 1.0
    assert engines.agreement(np.zeros((1, 3)), np.ones((1, 3))) == 0.0
    assert engines.agreement(np.full((1, 3), np.nan), np.ones((1, 3))) == -1.0


def test_auto_converts_for_long_work_only(body):
    few = engines.create(body, "auto", images=10)
    many = engines.create(body, "auto", images=10**9)
    assert (few.name, many.name) == ("keras", "openvino")


# parts of a network


@pytest.mark.parametrize("name", ["keras", "openvino", "onnxruntime"])
@pytest.mark.parametrize("until", ["stage1", "stage2", "conv3_block1_1_relu", "features"])
def test_any_prefix_runs(body, images, name, until):
    import keras

    engine = engines.create(body, name, until=until)
    layer = {"stage1": "conv1_relu", "stage2": "conv2_block1_out", "features": "avg_pool"}.get(until, until)
    expected = keras.Model(body.inputs, body.get_layer(layer).output).predict(images, verbose=0)
    rows = engine.run(images)
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50", "resnet50v2", "resnet50d", "resnet18"])
def test_taps_are_those_of_the_builder(name):
    """A tap of a whole network is the tensor that the same network gives when it is built with that tap."""
    from resfit.networks import build as network
    from resfit.networks import catalog

    spec = shortened(catalog.get(name).spec)
    whole = network.build(spec, include_top=False, pooling="avg")
    stages = [f"stage{number}" for number in range(1, len(spec.depths) + 2)]
    tapped = network.build(spec, include_top=False, taps=stages)
    for stage, output in tapped.output.items():
        assert engines.cut(whole, stage).output._keras_history.operation.name == output._keras_history.operation.name


def test_prefix_keeps_contract_and_shares_weights(body):
    part = engines.cut(body, "stage2")
    assert part.input_spec == body.input_spec
    assert part.weights[0] is body.weights[0]
    assert engines.cut(body, None) is body
    with pytest.raises(ArgumentError, match="Did you mean 'stage2'"):
        engines.cut(body, "stage22")


# int8


@pytest.fixture(scope="module")
def larger():
    """Wide enough that eight bits carry it, as they do a real network."""
    from resfit.networks import build as network
    from resfit.networks import catalog
    from resfit.preprocessing import TORCH

    spec = catalog.get("resnet18").spec.replace(depths=(1, 1, 1, 1))
    return randomize(network.build(spec, include_top=False, pooling="avg", input_spec=TORCH, preprocess=True))


def smooth_images(count, size=48, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, size // 8, size // 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("name", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_int8_is_close_and_kept(larger, tmp_path, name):
    pytest.importorskip("nncf")
    exact = engines.create(larger, name, cache=tmp_path)
    fast = engines.create(larger, name, precision="int8", samples=smooth_images(16), calibration="mine", cache=tmp_path)
    assert (fast.name, fast.precision) == (name, "int8")
    fresh = smooth_images(6, seed=1)
    cosine = engines.agreement(fast.run(fresh), exact.run(fresh))
    assert 0.99 < cosine < 0.9999999  # close, and not the same network in disguise
    again = engines.create(larger, name, precision="int8", calibration="mine", cache=tmp_path)
    np.testing.assert_array_equal(again.run(fresh), fast.run(fresh))
    assert engines.is_quantized(larger, name, "mine", cache=tmp_path)
    assert not engines.is_quantized(larger, name, "another", cache=tmp_path)


def test_int8_that_is_too_far_off_is_given_up(larger, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(int8, "AGREEMENT", 0.99999)
    with pytest.warns(UserWarning, match=r"int8 must agree with float32 .* Going on in float32"):
        engine = engines.create(larger, "openvino", precision="int8", samples=smooth_images(8), cache=tmp_path)
    assert (engine.name, engine.precision) == ("openvino", "float32")


def test_int8_is_refused_without_images_and_without_nncf(body, monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match="calibrated on images"):
        engines.create(body, "openvino", precision="int8")
    with pytest.raises(ArgumentError, match="calibration='unknown'"):
        engines.create(body, "openvino", precision="int8", calibration="unknown")
    with pytest.raises(ArgumentError, match="keras does not compute in int8 on cpu"):
        engines.create(body, "keras", precision="int8")
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nncf" else find(name, *a))
    with pytest.raises(MissingDependencyError, match=r"resfit\[int8\]"):
        engines.create(body, "openvino", precision="int8", samples=random_images(4, 16, 16, 3), cache=tmp_path)


@pytest.mark.skipif(not engines.has_precision("openvino", "bfloat16"), reason="not on this processor")
def test_bfloat16_is_close_and_noted(larger, tmp_path):
    some = random_images(6, 32, 32, 3)
    expected = engines.create(larger, "keras").run(some)
    fast = engines.create(larger, "openvino", precision="bfloat16", cache=tmp_path)
    rows = fast.run(some)
    assert (fast.name, fast.precision) == ("openvino", "bfloat16")
    assert engines.BFLOAT16_AGREEMENT < engines.agreement(rows, expected) < 1.0
    entry = engines.entry_of(larger, "openvino", cache=tmp_path)
    assert entry.facts()["agreement_bfloat16"] == pytest.approx(engines.agreement(rows[:4], expected[:4]))
    assert "agreement" not in entry.facts()  # that is of float32, from the same file
    exact = engines.create(larger, "openvino", cache=tmp_path)
    np.testing.assert_allclose(exact.run(some), expected, rtol=1e-4, atol=1e-5)
    entry.note(agreement_bfloat16=0.9)
    with pytest.warns(UserWarning, match=r"in bfloat16 \(cosine at least 0.999\). Received: 0.900000"):
        assert engines.create(larger, "openvino", precision="bfloat16", cache=tmp_path).name == "keras"
    with pytest.raises(ArgumentError, match="onnxruntime does not compute in bfloat16"):
        engines.create(larger, "onnxruntime", precision="bfloat16", cache=tmp_path)


def test_samples_are_parted():
    samples = random_images(48, 4, 4, 3)
    calibrating, checking = int8.split(samples)
    assert (len(calibrating), len(checking)) == (36, 12)
    np.testing.assert_array_equal(np.concatenate([checking, calibrating]), samples)
    assert all(len(part) == 2 for part in int8.split(samples[:2]))
    with pytest.raises(ArgumentError, match="samples must have shape"):
        int8.split(np.zeros((0, 4, 4, 3)))


# content and arguments


def test_fingerprint_is_of_content_not_of_names():
    import keras

    body = tiny_body(seed=0)
    same = engines.fingerprint(body)
    assert engines.fingerprint(tiny_body(seed=0)) == same
    assert engines.fingerprint(tiny_body(seed=1)) != same
    weights = body.get_weights()
    weights[3] = weights[3] + 1e-3
    body.set_weights(weights)
    assert engines.fingerprint(body) != same

    def dense(activation):
        inputs = keras.Input((4,))
        layer = keras.layers.Dense(2, activation=activation, kernel_initializer="ones")
        return keras.Model(inputs, layer(inputs))

    assert engines.fingerprint(dense("relu")) == engines.fingerprint(dense("relu"))
    assert engines.fingerprint(dense("relu")) != engines.fingerprint(dense("tanh"))


def test_what_is_refused(body, monkeypatch):
    with pytest.raises(ArgumentError, match="Did you mean 'openvino'"):
        engines.create(body, "openvin")
    with pytest.raises(ArgumentError, match="Did you mean 'int8'"):
        engines.create(body, precision="int4")
    import keras

    two = keras.Model(body.inputs, [body.output, body.layers[3].output])
    with pytest.raises(ArgumentError, match="2 outputs"):
        engines.create(two)
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(MissingDependencyError, match=r"resfit\[onnx\]"):
        engines.create(body, "onnxruntime")
    with pytest.raises(MissingDependencyError, match=r"resfit\[litert\]"):
        engines.create(body, "litert")


def test_a_model_that_does_not_change_is_digested_once(monkeypatch):
    counted = []
    digest = engines._fingerprint
    monkeypatch.setattr(engines, "_fingerprint", lambda model: counted.append(model) or digest(model))
    body = tiny_body()
    before = engines.fingerprint(body)
    with engines.unchanged(body), engines.unchanged(body):
        assert engines.fingerprint(body) == engines.fingerprint(body) == before
        assert len(counted) == 2
    body.weights[0].assign(body.weights[0] + 1)
    assert engines.fingerprint(body) != before
