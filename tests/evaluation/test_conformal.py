import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.evaluation import conformal


def world(n, classes=6, seed=0):
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (shares.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    wrong = np.exp(0.3 * logits) / np.exp(0.3 * logits).sum(axis=1, keepdims=True)  # badly calibrated on purpose
    return truth, wrong


@pytest.mark.parametrize("method", conformal.METHODS)
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.97])
def test_the_true_class_is_in_the_set_as_often_as_asked(method, coverage):
    truth, shares = world(12_000)
    found = conformal.fit_conformal(shares[:4000], truth[:4000])
    sets = found.sets(shares[4000:], coverage, method)
    measured = conformal.measure_sets(sets, truth[4000:], resamples=50)
    # 4,000 held-out images and 8,000 test images leave a deviation, the kept ranks one of 1 / 512 upwards
    slack = 3 * np.sqrt(coverage * (1 - coverage) * (1 / 4000 + 1 / 8000))
    assert coverage - slack <= measured["coverage"].value <= coverage + slack + 1 / 512
    assert measured["coverage"].low < measured["coverage"].value < measured["coverage"].high
    assert sets[np.arange(8000), shares[4000:].argmax(axis=1)].all()
    assert 1 <= measured["size"].value < 6


@pytest.mark.parametrize("method", conformal.METHODS)
def test_class_conditional_sets_cover_each_class(method):
    """Where one class is much harder than the others, overall sets miss it and class-conditional ones do not."""
    truth, shares = world(20_000)
    hard = truth == 2
    shares[hard] = np.roll(shares[hard], 3, axis=1)
    found = conformal.fit_conformal(shares[:10_000], truth[:10_000])
    rest, known = shares[10_000:], truth[10_000:]
    within = {}
    for name, option in (("overall", False), ("by class", True)):
        sets = found.sets(rest, 0.9, method, class_conditional=option)
        within[name] = [sets[known == label, label].mean() for label in range(6)]
    assert within["overall"][2] < 0.75
    # about 1,600 images of a class on each side, and one knot of 64 upwards
    assert all(0.9 - 0.032 <= share <= 0.9 + 0.032 + 1 / 64 for share in within["by class"]), within
    again = conformal.Conformal.from_dict(found.to_dict())
    assert (again.sets(rest, 0.9, method, class_conditional=True) == sets).all()


def test_a_coverage_that_the_images_cannot_give_is_stated():
    truth, shares = world(48)
    found = conformal.fit_conformal(shares, truth)
    assert found.limit(48 / 49) == ""
    assert "0.99 needs at least 99 calibration images, and there are 48" in found.limit(0.99)
    assert "to ask for is 0.979" in found.limit(0.99)
    counts = np.bincount(truth, minlength=6)
    few = [name for name, count in zip("abcdef", counts, strict=True) if count < 9]
    assert 0 < len(few) < 6
    text = found.limit(0.9, class_conditional=True, classes=tuple("abcdef"))
    assert f"{len(few)} of 6 classes have fewer ({', '.join(few[:5])}" in text
    chosen = found.sets(shares, 0.9, class_conditional=True)
    assert [chosen[:, "abcdef".index(name)].all() for name in few] == [True] * len(few)


def test_quantiles_are_the_order_statistics():
    shares = np.tile([[0.9, 0.1]], (99, 1))
    shares[:, 0] = np.linspace(0.5, 0.99, 99)
    found = conformal.fit_conformal(shares, np.zeros(99, int))
    scores = np.sort(1 - shares[:, 0])
    for coverage, rank in ((0.9, 90), (0.5, 50), (0.99, 99)):
        assert found.quantile(coverage) == pytest.approx(scores[rank - 1])
    assert found.quantile(0.995) == float("inf")  # 99 images cannot vouch for it: every class
    assert found.sets(shares[:1], 0.995).all()
    again = conformal.Conformal.from_dict(found.to_dict())
    assert again.quantile(0.9) == pytest.approx(found.quantile(0.9), abs=1e-6)


def test_many_images_are_kept_as_few_ranks():
    truth, shares = world(9000)
    found = conformal.fit_conformal(shares, truth)
    assert len(found.ranks) == 512
    own = np.sort(1 - shares[np.arange(9000), truth])
    exact = own[int(np.ceil(9001 * 0.9)) - 1]
    assert exact <= found.quantile(0.9) <= own[int(np.ceil(9001 * 0.903))]


def test_conformal_arguments():
    found = conformal.fit_conformal(np.array([[0.6, 0.4]]), np.array([0]))
    with pytest.raises(ArgumentError, match="coverage"):
        found.quantile(1.0)
    with pytest.raises(ArgumentError, match=r"one of .*Did you mean 'aps'"):
        found.quantile(0.9, "apps")
