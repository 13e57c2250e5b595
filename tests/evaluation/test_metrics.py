import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import wilson_interval
from resfit.evaluation.metrics import evaluate


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_at_the_ends():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(7, 7)[1] == 1.0
    with pytest.raises(ArgumentError, match=r"0\.\.5"):
        wilson_interval(6, 5)


def test_evaluation_by_hand():
    labels = [0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 1, 1, 0, 1]
    probabilities = np.full((6, 4), 0.1)
    probabilities[np.arange(6), predicted] = 0.7
    result = evaluate(labels, probabilities, ("a", "b", "c", "d"))
    assert result.accuracy == 0.5
    assert result.n == 6
    assert result.confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    a, b, c, d = result.per_class
    assert (a.precision, a.recall, a.support) == pytest.approx((2 / 3, 2 / 3, 3))
    assert (b.precision, b.recall, b.f1, b.support) == pytest.approx((1 / 3, 1 / 2, 0.4, 2))
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 1)
    assert (d.name, d.support) == ("d", 0)
    assert result.log_loss == pytest.approx(-(3 * np.log(0.7) + 3 * np.log(0.1)) / 6)
    assert result.interval == wilson_interval(3, 6)


def test_evaluation_refuses_what_does_not_fit():
    with pytest.raises(ArgumentError, match="shape"):
        evaluate([0], np.ones((1, 3)), ("a", "b"))
    with pytest.raises(ArgumentError, match="n >= 1"):
        evaluate([], np.ones((0, 2)), ("a", "b"))
    with pytest.raises(ArgumentError, match=r"0\.\.1"):
        evaluate([-1], np.ones((1, 2)), ("a", "b"))
