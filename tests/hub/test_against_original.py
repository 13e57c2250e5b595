"""Outputs, weights after training, losses and exceptions of ``tensorflow_hub`` under Keras 2."""

from __future__ import annotations

import builtins

import keras
import numpy as np
import pytest

from resfit import hub
from resfit.errors import ResfitError
from tests.hub import cases

KINDS = ("ValueError", "TypeError", "NotImplementedError", "OSError", "RuntimeError")


@pytest.fixture(scope="module", autouse=True)
def _keras_3():
    cases._trained.keras = keras


@pytest.mark.parametrize("name", cases.CASES)
def test_case(name, original):
    keras.utils.set_random_seed(0)
    found = cases.CASES[name](hub, keras, original[2])
    expected = {key.partition("/")[2]: value for key, value in original[0].items() if key.startswith(f"{name}/")}
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        actual = np.asarray(found[key])
        assert actual.shape == value.shape, key
        if value.dtype.kind in "iufb":
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(actual, value, err_msg=key)


@pytest.mark.parametrize("name", cases.ERRORS)
def test_error(name, folders, original):
    kinds = original[1][name]
    expected = next(getattr(builtins, kind) for kind in kinds if kind in KINDS)
    with pytest.raises(expected) as caught:
        cases.ERRORS[name](hub, folders)
    assert isinstance(caught.value, ResfitError) or name in ("wrong_tags", "wrong_shape")
