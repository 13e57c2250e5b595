"""What runs a network, where and in which precision is decided once, and told as it is."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from resfit import devices, engines
from resfit.engines import resolved as resolving
from resfit.engines.keras import KerasEngine
from resfit.errors import ArgumentError, ResfitWarning
from resfit.features import calibrations
from resfit.features.extract import extract, store_key
from tests.cards import AMPERE, VOLTA, cards
from tests.numeric import images as random_images
from tests.pictures import tiny_body, write_folder


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return sorted(write_folder(tmp_path_factory.mktemp("images"), each=3).rglob("*.png"))


@pytest.fixture
def has_bfloat16(monkeypatch):
    """Says whether OpenVINO has bfloat16 here, whatever the processor."""
    return lambda has: monkeypatch.setattr(resolving, "_openvino_has_bfloat16", lambda: has)


def test_what_is_left_open_takes_what_computes_the_precision(monkeypatch, has_bfloat16):
    has_bfloat16(True)
    found = engines.resolve("auto", "bfloat16")
    assert (found.engine, found.precision, found.note, found.chosen) == ("openvino", "bfloat16", "", True)
    has_bfloat16(False)
    found = engines.resolve("auto", "bfloat16")
    assert (found.engine, found.precision) == ("auto", "float32")
    assert "no fast engine computes in bfloat16 on cpu" in found.note
    assert "Going on in float32" in found.note
    for precision in ("tf32", "float16"):
        found = engines.resolve("auto", precision)
        assert (found.precision, bool(found.note)) == ("float32", True)


def test_what_is_named_is_computed_or_refused(has_bfloat16):
    has_bfloat16(False)
    with pytest.raises(ArgumentError, match=r"onnxruntime does not compute in bfloat16 on cpu.*engine='keras' has it"):
        engines.resolve("onnxruntime", "bfloat16")
    with pytest.raises(ArgumentError, match=r"keras does not compute in int8 on cpu"):
        engines.resolve("keras", "int8")
    with pytest.raises(ArgumentError, match=r"keras does not compute in tf32 on cpu"):
        engines.resolve("keras", "tf32")
    with pytest.raises(ArgumentError, match="Did you mean 'float16'"):
        engines.resolve("keras", "float61")
    assert engines.resolve("keras", "bfloat16").precision == "bfloat16"


def test_on_a_card_its_capability_decides(monkeypatch):
    cards(monkeypatch, AMPERE, VOLTA)
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        found = engines.resolve("auto", precision)
        assert (found.engine, found.device, found.precision, found.note) == ("keras", AMPERE, precision, "")
    found = engines.resolve("auto", "bfloat16", VOLTA)
    assert (found.device, found.precision) == (VOLTA, "float32")
    assert found.note == ("gpu:1 (Volta) does not compute in bfloat16. Going on in float32.")
    with pytest.raises(ArgumentError, match=r"keras does not compute in tf32 on gpu:1 \(Volta\)"):
        engines.resolve("keras", "tf32", VOLTA)
    assert engines.resolve("openvino").device.kind == "cpu"  # it has no other
    found = engines.resolve("auto", "int8")
    assert (found.engine, found.device.kind, found.precision) == ("openvino", "cpu", "int8")
    assert "int8 is computed by openvino on the processor" in found.note


def test_keys_tell_apart_what_has_other_numbers(body, monkeypatch, has_bfloat16):
    has_bfloat16(True)
    on_processor = [engines.resolve(name) for name in ("auto", "keras", "openvino")]
    assert {found.key for found in on_processor} == {"float32"}  # rows that were kept before devices had a part in it
    cards(monkeypatch, AMPERE)
    others = [engines.resolve("keras", name) for name in ("float32", "tf32", "bfloat16", "float16")]
    others.append(engines.resolve("openvino", "bfloat16"))
    keys = {store_key(body, body.input_spec, found.key).digest for found in [on_processor[0], *others]}
    assert len(keys) == 6
    assert store_key(body, body.input_spec).digest in keys


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_keras_computes_in_what_it_says(body, monkeypatch, precision):
    """Rows of fewer bits are others, and close to float32 on the processor."""
    cards(monkeypatch, AMPERE)
    some = (random_images(5, 16, 16, 3) * 1).astype(np.uint8)
    expected = KerasEngine(body, device=devices.cpu()).run(some)
    engine = engines.create(body, precision=precision)
    rows = engine.run(some)
    assert (engine.name, engine.precision, engine.device) == ("keras", precision, AMPERE)
    assert engines.agreement(rows, expected) > 0.999
    np.testing.assert_array_equal(rows, engine.run(some.astype(np.float32)))  # uint8 goes up as it is
    off = np.abs(rows - expected).max() / np.abs(expected).max()
    if precision in ("float32", "tf32"):  # a processor has no TensorFloat-32
        assert off < 1e-5
    else:
        assert {"bfloat16": 1e-3, "float16": 1e-4}[precision] < off < {"bfloat16": 3e-2, "float16": 4e-3}[precision]
    for count, (tag, found) in enumerate(engines.stream(engine, ((n, some[: n + 1]) for n in range(5)))):
        assert (tag, len(found)) == (count, count + 1)
        np.testing.assert_allclose(found, rows[: count + 1], rtol=0.05, atol=0.05 * np.abs(rows).max())


def test_rows_are_kept_as_what_they_are(body, paths, tmp_path, has_bfloat16):
    """bfloat16 of Keras is bfloat16, and rows of either precision do not answer for the other."""
    has_bfloat16(False)
    exact = extract(body, paths, engine="keras", cache=tmp_path)
    narrow = extract(body, paths, engine="keras", cache=tmp_path, precision="bfloat16")
    assert (narrow.precision, narrow.computed) == ("bfloat16", len(paths))
    assert narrow.device["device"] == "cpu"
    assert 1e-4 < np.abs(narrow.rows - exact.rows).max() / np.abs(exact.rows).max() < 3e-2
    with pytest.warns(ResfitWarning, match="no fast engine computes in bfloat16"):
        left_open = extract(body, paths, cache=tmp_path, precision="bfloat16")
    assert (left_open.precision, left_open.computed, left_open.engine) == ("float32", 0, "cache")
    np.testing.assert_array_equal(left_open.rows, exact.rows)
    with pytest.raises(ArgumentError, match="keras does not compute in int8"):
        extract(body, paths, engine="keras", cache=tmp_path, precision="int8")


def test_a_precision_that_is_given_up_is_not_what_the_rows_are_kept_as(body, paths, tmp_path, monkeypatch):
    """The first batch disagrees: the rows are those of float32, are told so, and are found as such."""
    cards(monkeypatch, AMPERE)
    exact = extract(body, paths, cache=tmp_path)
    monkeypatch.setitem(engines._AGREEMENTS, "float16", engines._Agreement("agreement_float16", 1.1, " in float16"))
    (tmp_path / "more").mkdir()
    more = sorted(write_folder(tmp_path / "more", each=4).rglob("*.png"))
    with pytest.warns(ResfitWarning, match=r"keras must agree with Keras on this network in float16.*in float32"):
        found = extract(body, more, cache=tmp_path, precision="float16")
    assert (found.precision, found.engine) == ("float32", "keras")
    again = extract(body, more, cache=tmp_path)
    assert (again.computed, again.precision) == (0, "float32")
    np.testing.assert_array_equal(again.rows, found.rows)
    assert exact.device["device"] == "gpu:0"
    assert exact.device["driver"].startswith("550")


def test_what_an_engine_cannot_do_is_no_finding_about_the_network(body, paths, tmp_path, monkeypatch):
    """A conversion that fails leaves no word that int8 does not suit the network."""
    pytest.importorskip("nncf")
    monkeypatch.setattr(engines._Maker, "int8", lambda self, plain, samples, calibration: plain)
    found = extract(body, paths, cache=tmp_path, precision="int8")
    assert found.precision == "float32"
    assert not list((tmp_path / "calibrations").glob("*.json"))
    # nor does such a word that an earlier version has left
    job = type("Job", (), {"model": body, "contract": body.input_spec, "files": paths})()
    job.resolved = engines.resolve("auto", "int8")
    chosen = calibrations._calibration(job, [None] * len(paths), tmp_path, tmp_path)
    chosen.record.parent.mkdir(exist_ok=True)
    chosen.record.write_text(json.dumps({chosen.name: {"precision": "float32", "digests": chosen.digests}}))
    asked = []
    monkeypatch.setattr(engines._Maker, "int8", lambda self, plain, *_: asked.append(1) or plain)
    extract(body, paths, cache=tmp_path / "other", precision="int8")
    extract(body, paths, cache=tmp_path, precision="int8")
    assert len(asked) == 2


# memory


class Cramped:
    """A network's call on a card that has room for so many images."""

    def __init__(self, call, room):
        self._call, self.room, self.sizes = call, room, []

    def __call__(self, images):
        import tensorflow as tf

        self.sizes.append(len(images))
        if len(images) > self.room:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return self._call(images)


def test_memory_that_runs_out_halves_the_batch_with_one_line(body, monkeypatch):
    cards(monkeypatch, AMPERE)
    some = random_images(11, 16, 16, 3)
    engine = KerasEngine(body)
    expected = engine.run(some)
    cramped = Cramped(engine._calls["uint8"], 4)
    engine._calls["uint8"] = cramped
    with pytest.warns(ResfitWarning, match="gpu:0 has not enough memory") as told:
        rows = engine.run(some)
    assert [str(one.message).partition(":")[2] for one in told] == [
        "0 has not enough memory for 11 images at once: going on with 5.",
        "0 has not enough memory for 5 images at once: going on with 2.",
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert max(cramped.sizes[-6:]) == 2
    streamed = [found for _, found in engines.stream(engine, [(0, some), (1, some[:3])])]
    np.testing.assert_allclose(np.concatenate(streamed), np.concatenate([expected, expected[:3]]), rtol=1e-5, atol=1e-6)
    cramped.room = 0
    with pytest.warns(ResfitWarning, match="not enough memory"), pytest.raises(Exception, match="OOM"):
        engine.run(some)


def test_batches_for_a_card_are_of_few_sizes(body, monkeypatch):
    """Each new size would be made ready anew; TensorFloat-32 has sizes of its own, which share nothing with float32."""
    cards(monkeypatch, AMPERE)
    for precision, sizes in (("float32", {1, 2, 4, 8, 16}), ("tf32", {2, 3, 5, 9, 17})):
        engine = KerasEngine(body, precision)
        seen = Cramped(engine._call(np.dtype("uint8")), 99)
        engine._calls["uint8"] = seen
        for count in range(1, 13):
            assert len(engine.run(np.zeros((count, 16, 16, 3), np.uint8))) == count
        assert set(seen.sizes) <= sizes


def test_tensorfloat_is_on_for_those_who_ask_for_it_alone(body, monkeypatch):
    import tensorflow as tf

    cards(monkeypatch, AMPERE)
    seen = []
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    for precision in ("float32", "tf32", "float32"):
        engine = KerasEngine(body, precision)
        call = engine._call(np.dtype("uint8"))
        engine._calls["uint8"] = lambda images, call=call: seen.append(enabled()) or call(images)
        devices.first_use()
        engine.run(np.zeros((1, 16, 16, 3), np.uint8))
    assert seen == [False, True, False]
    assert not enabled()


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnetv2_50x1_bit", "seresnet50", "resnet50v2"])
def test_what_is_folded_computes_the_same(monkeypatch, name):
    """Groups, standardised kernels, squeeze-excite, and norms that come before the convolution."""
    from resfit.networks import build, catalog
    from tests.numeric import randomize
    from tests.specs import shortened

    body = randomize(build.build(shortened(catalog.get(name).spec), include_top=False, pooling="avg"))
    some = random_images(2, 32, 32, 3)
    expected = body.predict(some.astype(np.float32), verbose=0)
    cards(monkeypatch, AMPERE)
    np.testing.assert_allclose(KerasEngine(body).run(some), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert engines.agreement(KerasEngine(body, "bfloat16").run(some), expected) > 0.99


# servers


def test_a_server_takes_what_answers_sooner_and_warms_what_it_is_asked(body, monkeypatch):
    cards(monkeypatch, AMPERE)
    times = {"keras": 1.0, "openvino": 2.0}
    monkeypatch.setattr(engines.speed, "fastest_batch", lambda engine, images: times[engine.name])
    on_card = engines.for_server(body)
    assert (on_card.name, on_card.device) == ("keras", AMPERE)
    times["openvino"] = 0.5
    assert engines.for_server(body).name == "openvino"
    assert engines.for_server(body, "keras").name == "keras"
    with monkeypatch.context() as inside:  # a network that OpenVINO cannot convert
        broken = dataclasses.replace(engines.RUNTIMES["openvino"], convert=None, engine=None)
        inside.setitem(engines.RUNTIMES._entries, "openvino", broken)
        assert engines.for_server(body).name == "keras"
    assert engines.batch_sizes(on_card, 24) == [1, 2, 4, 8, 16, 24]
    assert engines.batch_sizes(on_card, 1) == [1]
    assert engines.batch_sizes(engines.create(body, "openvino"), 24) == [1, 2, 24]
    with devices.using("cpu"):
        monkeypatch.setattr(engines.speed, "fastest_batch", lambda *_: pytest.fail("measured without a card"))
        assert engines.for_server(body).name == "openvino"
