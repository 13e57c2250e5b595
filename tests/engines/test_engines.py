import numpy as np
import pytest

from resfit import engines
from resfit.engines.openvino import OpenVinoEngine, is_converted
from resfit.errors import ArgumentError
from tests.pictures import tiny_body


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def test_engines_agree(body, images):
    expected = body.predict(images, verbose=0)
    plain, fast = engines.create(body, "keras"), engines.create(body, "openvino")
    assert (plain.name, fast.name) == ("keras", "openvino")
    np.testing.assert_allclose(plain.run(images), expected, rtol=1e-5, atol=1e-6)
    rows = fast.run(images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert engines.agreement(rows, expected) > 0.999999


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_uint8_is_its_float_copy(body, images, name):
    engine = engines.create(body, name)
    before = images.copy()
    np.testing.assert_array_equal(engine.run(images), engine.run(images.astype(np.float32)))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_batches_of_any_size_and_results_that_last(body, images, name):
    engine = engines.create(body, name)
    whole = engine.run(images)
    kept = whole.copy()
    single = np.concatenate([engine.run(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(single, whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(whole, kept)  # not a view of the engine's memory


def test_conversion_is_kept_and_made_again_when_damaged(body, images, tmp_path):
    assert not is_converted(body, tmp_path)
    expected = OpenVinoEngine(body, cache=tmp_path).run(images)
    assert is_converted(body, tmp_path)
    (xml,) = tmp_path.glob("*.xml")
    stamp = xml.stat().st_mtime_ns
    OpenVinoEngine(body, cache=tmp_path)
    assert xml.stat().st_mtime_ns == stamp
    xml.write_bytes(xml.read_bytes()[:200])
    np.testing.assert_array_equal(OpenVinoEngine(body, cache=tmp_path).run(images), expected)
    assert not is_converted(tiny_body(seed=1), tmp_path)


def test_engine_that_disagrees_is_given_up(body, images):
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


def test_agreement_of_zeros_and_of_nonsense():
    assert engines.agreement(np.zeros((2, 3)), np.zeros((2, 3))) == 1.0
    assert engines.agreement(np.zeros((1, 3)), np.ones((1, 3))) == 0.0
    assert not engines.agreement(np.full((1, 3), np.nan), np.ones((1, 3))) >= engines.AGREEMENT


def test_auto_converts_for_long_work_only(body, images):
    few = engines.create(body, "auto", images=10)
    many = engines.create(body, "auto", images=10**9)
    assert (few.name, many.name) == ("keras", "openvino")


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


def test_what_is_refused(body):
    with pytest.raises(ArgumentError, match="Did you mean 'openvino'"):
        engines.create(body, "openvin")
    import keras

    two = keras.Model(body.inputs, [body.output, body.layers[3].output])
    with pytest.raises(ArgumentError, match="2 outputs"):
        engines.create(two)
