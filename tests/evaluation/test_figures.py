"""Figures against scikit-learn, on the images themselves and on resamples of them."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from resfit.errors import ArgumentError
from resfit.evaluation import calibration, figures, inference, intervals, ranking
from resfit.evaluation.comparison import compare
from resfit.evaluation.intervals import wilson_interval

CLASSES = ("a", "b", "c", "d")


def guesses(n=400, classes=4, seed=0, sharp=1.2, ties=True):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + sharp * np.eye(classes)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, np.round(shares, 2) + 1e-6 if ties else shares


def several_labels(n=300, classes=3, seed=0):
    random = np.random.default_rng(seed)
    known = (random.random((n, classes)) < (0.2, 0.5, 0.7)).astype(int)
    return known, np.clip(np.round(0.35 + 0.3 * known + random.normal(0, 0.25, known.shape), 2), 0.01, 0.99)


@pytest.mark.parametrize("seed", [0, 1])
def test_areas_of_resamples_are_those_of_scikit_learn(seed):
    truth, shares = guesses(seed=seed)
    table = next(intervals.weights(np.arange(len(truth)), resamples=5, seed=seed))
    assert table.shape == (400, 5)
    assert (table.sum(axis=0) == 400).all()
    found = ranking.Ranking(truth == 1, shares[:, 1]).measure(table, 0.9)
    for column in range(5):
        weight = table[:, column]
        area = metrics.roc_auc_score(truth == 1, shares[:, 1], sample_weight=weight)
        average = metrics.average_precision_score(truth == 1, shares[:, 1], sample_weight=weight)
        false, true, _ = metrics.roc_curve(truth == 1, shares[:, 1], sample_weight=weight, drop_intermediate=False)
        assert found[:, column] == pytest.approx([area, average, true[false <= 0.1 + 1e-9].max()], abs=2e-6)


def test_values_are_those_of_scikit_learn():
    truth, shares = guesses()
    found = figures.figures(truth, shares, CLASSES, resamples=50)
    guess = shares.argmax(axis=1)
    one_hot = np.eye(4)[truth]
    expected = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "f1_macro": metrics.f1_score(truth, guess, average="macro"),
        "mcc": metrics.matthews_corrcoef(truth, guess),
        "auroc_macro": metrics.roc_auc_score(one_hot, shares, average="macro"),
        "auroc_micro": metrics.roc_auc_score(one_hot, shares, average="micro"),
        "auprc_macro": metrics.average_precision_score(one_hot, shares, average="macro"),
        "auprc_micro": metrics.average_precision_score(one_hot, shares, average="micro"),
        "top_2": metrics.top_k_accuracy_score(truth, shares + np.linspace(1e-9, 0, 4), k=2),
        "brier": ((shares - one_hot) ** 2).sum(axis=1).mean(),
        "log_loss": -np.log(shares[np.arange(400), truth]).mean(),
    }
    for name, value in expected.items():
        assert found.overall[name].value == pytest.approx(value, abs=1e-9), name
        assert found.overall[name].low <= value <= found.overall[name].high, name
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, guess)
    for i, name in enumerate(CLASSES):
        row = found.per_class[name]
        assert (row["precision"].value, row["recall"].value, row["f1"].value) == pytest.approx(
            (precision[i], recall[i], f1[i])
        )
        assert row["auroc"].value == pytest.approx(metrics.roc_auc_score(truth == i, shares[:, i]))
        called = shares[:, i] >= found.thresholds[name]
        assert (~called)[truth != i].mean() >= 0.95
        assert called[truth == i].mean() == pytest.approx(row["sensitivity_at_specificity"].value)


def test_every_figure_of_a_resample_is_that_of_the_images_drawn():
    """An interval over one resample is that resample: all figures against scikit-learn on the images drawn."""
    truth, shares = guesses(n=150)
    drawn = np.repeat(np.arange(150), next(intervals.weights(np.arange(150), resamples=1, seed=3))[:, 0].astype(int))
    found = figures.figures(truth, shares, CLASSES, resamples=1, seed=3)
    again = figures.figures(truth[drawn], shares[drawn], CLASSES, resamples=1)
    for name, figure in found.overall.items():
        if name not in ("ece", *figures._OVER_IMAGES):  # whose intervals are not spanned by resamples
            assert figure.low == pytest.approx(again.overall[name].value, abs=2e-6), name
    for label in CLASSES:
        for name, figure in found.per_class[label].items():
            assert figure.low == pytest.approx(again.per_class[label][name].value, abs=2e-6), (label, name)


@pytest.mark.parametrize("multilabel", [False, True])
def test_intervals_cover_as_often_as_they_say(multilabel):
    """On fresh samples of one known world, 95 % intervals hold the world's own figures about 95 times in 100."""
    truth, shares = several_labels(40_000, seed=9) if multilabel else guesses(40_000, seed=9, ties=False)
    names = CLASSES[: shares.shape[1]]
    world = figures._Task(truth, shares, names)
    rankings = {name: ranking.Ranking(world.known[:, i], shares[:, i]) for i, name in enumerate(names)}
    expected = world.values(rankings)
    accuracy = "exact_match_accuracy" if multilabel else "accuracy"
    inside = dict.fromkeys((accuracy, "f1_macro", "auroc_macro", "auprc_macro", "log_loss", "brier"), 0)
    rounds, size = 40, 200
    for number in range(rounds):
        rows = slice(size * number, size * (number + 1))
        found = figures.figures(truth[rows], shares[rows], names, resamples=200, seed=number).overall
        for name in inside:
            inside[name] += found[name].low <= expected[name] <= found[name].high
    assert min(inside.values()) >= 0.82 * rounds, inside
    assert sum(inside.values()) >= 0.88 * rounds * len(inside), inside


def test_several_labels_are_measured_as_scikit_learn_does():
    known, scores = several_labels()
    found = figures.figures(known, scores, CLASSES[:3], resamples=50)
    called = scores > 0.5
    expected = {
        "exact_match_accuracy": metrics.accuracy_score(known, called),
        "label_accuracy": 1 - metrics.hamming_loss(known, called),
        "f1_micro": metrics.f1_score(known, called, average="micro"),
        "f1_macro": metrics.f1_score(known, called, average="macro"),
        "auroc_macro": metrics.roc_auc_score(known, scores, average="macro"),
        "auprc_micro": metrics.average_precision_score(known, scores, average="micro"),
        "brier": metrics.mean_squared_error(known, scores),
        "log_loss": np.mean([metrics.log_loss(known[:, i], scores[:, i]) for i in range(3)]),
    }
    for name, value in expected.items():
        assert found.overall[name].value == pytest.approx(value, abs=1e-9), name
        assert found.overall[name].low <= value <= found.overall[name].high, name
    assert not {"mcc", "accuracy"} & set(found.overall)


def test_whole_groups_are_drawn():
    """Copies of an image tell nothing new: groups of ten copies give the interval of the images, not of the copies."""
    truth, shares = guesses(n=60, ties=False)
    copies = np.repeat(np.arange(60), 10)
    plain = figures.figures(truth, shares, CLASSES).overall
    grouped = figures.figures(truth[copies], shares[copies], CLASSES, groups=[f"p{i}" for i in copies])
    blind = figures.figures(truth[copies], shares[copies], CLASSES).overall
    assert (grouped.units, grouped.grouped) == (60, True)
    for name in ("accuracy", "auroc_macro", "log_loss", "f1_macro"):
        assert grouped.overall[name].value == pytest.approx(plain[name].value, abs=1e-6)
        widths = [found[name].high - found[name].low for found in (plain, grouped.overall, blind)]
        assert widths[1] == pytest.approx(widths[0], rel=0.05)
        assert widths[2] < 0.5 * widths[1]
    one = intervals.group_numbers([None, "a", None, "a"], 4)
    assert one.tolist() == [0, 1, 2, 1]
    table = next(intervals.weights(one, resamples=40))
    assert (table[1] == table[3]).all()
    assert (table[0] != table[2]).any()


@pytest.mark.parametrize("groups", [None, [f"p{i // 4}" for i in range(120)]])
@pytest.mark.parametrize("multilabel", [False, True])
def test_one_accuracy_has_one_interval(groups, multilabel):
    truth, shares = several_labels(120) if multilabel else guesses(120)
    names = CLASSES[: shares.shape[1]]
    targets = truth if multilabel else np.eye(4)[truth]
    found = figures.figures(truth, shares, names, groups=groups, seed=5).overall
    found = found["exact_match_accuracy" if multilabel else "accuracy"]
    result = inference.measured(targets, shares, names, multilabel, (), groups=groups, seed=5)
    assert result.accuracy == pytest.approx(found.value)
    assert result.interval == pytest.approx((found.low, found.high))
    right = ((shares > 0.5) == truth).all(axis=1) if multilabel else shares.argmax(axis=1) == truth
    if groups is None:
        assert result.interval == pytest.approx(wilson_interval(right.sum(), 120))
    else:
        means = right.reshape(30, 4).mean(axis=1)  # equal groups: the standard error of the groups' means
        assert result.interval[1] - result.interval[0] == pytest.approx(2 * 1.96 * means.std() / 30**0.5, rel=0.1)


def test_matthews_correlation_of_one_class_is_undefined():
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = figures.figures([0, 0, 0], shares, ("a", "b"), resamples=20).overall["mcc"]
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.to_dict() == {"value": None, "low": None, "high": None, "method": "bootstrap"}
    called_one = figures.figures([0, 1, 0], [[0.9, 0.1]] * 3, ("a", "b"), resamples=20).overall["mcc"]
    assert called_one.value == 0.0  # by convention


def test_intervals_of_a_rare_class_state_the_resamples_without_it():
    truth, shares = guesses(60, classes=3, ties=False)
    truth[:] = truth % 2
    truth[0] = 2
    found = figures.figures(truth, shares, CLASSES[:3], resamples=500, seed=1)
    lacking = sum((table[0] == 0).sum() for table in intervals.weights(np.arange(60), resamples=500, seed=1))
    assert 0.3 < lacking / 500 < 0.43  # (1 - 1/60)^60
    rare, common = found.per_class["c"]["auroc"], found.per_class["a"]["auroc"]
    assert rare.note == f"{lacking} of 500 resamples left out, in which it is undefined"
    assert rare.to_dict()["note"] == rare.note
    assert common.note == ""
    balanced = found.overall["balanced_accuracy"].note
    assert balanced == f"a class has no image in {lacking} of 500 resamples, where the mean is over the others"
    assert found.overall["accuracy"].note == found.overall["log_loss"].note == ""


def test_what_is_always_right_has_an_interval_all_the_same():
    truth = np.arange(40) % 4
    found = figures.figures(truth, np.eye(4)[truth], CLASSES, resamples=20)
    assert found.overall["accuracy"].method == "Wilson"
    assert (found.overall["accuracy"].low, found.overall["accuracy"].high) == pytest.approx(wilson_interval(40, 40))
    assert found.per_class["a"]["recall"].low == pytest.approx(wilson_interval(10, 10)[0])
    assert found.per_class["a"]["specificity"].low == pytest.approx(wilson_interval(30, 30)[0])


def test_a_class_without_images_has_no_figures_that_need_some():
    truth, shares = guesses(n=80, classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures.figures(truth, np.hstack([shares, np.zeros((80, 1))]), CLASSES, resamples=20)
        alone = figures.figures([0, 0], [[0.9, 0.1], [0.6, 0.4]], ("a", "b"), resamples=5)
    assert set(found.per_class["d"]) == {"specificity"}
    assert "d" not in found.thresholds
    assert found.overall["balanced_accuracy"].value == pytest.approx(
        metrics.balanced_accuracy_score(truth, shares.argmax(axis=1))
    )
    assert "auroc_macro" not in alone.overall


def test_equal_seeds_give_equal_intervals():
    truth, shares = guesses(n=100)
    one, two, other = (figures.figures(truth, shares, CLASSES, resamples=30, seed=s).to_dict() for s in (1, 1, 2))
    assert one == two != other


def test_figures_refuse_what_does_not_fit():
    with pytest.raises(ArgumentError, match="shape"):
        figures.figures([0, 1], np.ones((2, 3)), ("a", "b"))
    with pytest.raises(ArgumentError, match=r"0\.\.1"):
        figures.figures([0, 2], np.ones((2, 2)), ("a", "b"))
    with pytest.raises(ArgumentError, match="finite"):
        figures.figures([0, 1], np.full((2, 2), np.nan), ("a", "b"))
    with pytest.raises(ArgumentError, match="one entry an image"):
        figures.figures([0, 1], np.ones((2, 2)), ("a", "b"), groups=["x"])


# thresholds, DeLong


def test_delong_variance_by_its_definition():
    random = np.random.default_rng(1)
    known = random.random(60) < 0.4
    scores = np.round(random.normal(size=60) + known, 1)
    wins = (scores[known][:, None] > scores[~known]) + 0.5 * (scores[known][:, None] == scores[~known])
    m, n = wins.shape
    variance = wins.mean(axis=1).var(ddof=1) / m + wins.mean(axis=0).var(ddof=1) / n
    found = ranking.delong_interval(known, scores)
    assert found.value == pytest.approx(metrics.roc_auc_score(known, scores))
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)
    other = np.round(scores + random.normal(0, 0.5, 60), 1)
    difference, p = ranking.delong_test(known, scores, other)
    assert difference.value == pytest.approx(found.value - metrics.roc_auc_score(known, other))
    assert 0 < p <= 1
    assert ranking.delong_test(known, scores, scores)[1] == 1.0


def test_delong_and_bootstrap_agree():
    random = np.random.default_rng(2)
    known = np.arange(600) % 3 == 0
    scores = random.normal(size=600) + known
    delong = ranking.delong_interval(known, scores)
    drawn = intervals.bootstrap({"a": ranking.Ranking(known, scores).measure}, np.arange(600))["a"][0]
    found = intervals.interval(delong.value, drawn)
    assert (found.low, found.high) == pytest.approx((delong.low, delong.high), abs=0.004)


def test_operating_points_by_trying_every_threshold():
    random = np.random.default_rng(3)
    known = np.arange(200) % 4 == 0
    scores = np.round(random.normal(size=200) + 1.5 * known, 1)
    tried = np.unique(scores)
    for ratio in (0.2, 1.0, 8.0):
        point = ranking.operating_point(known, scores, cost_ratio=ratio, resamples=50)
        costs = [ratio * (known & (scores < t)).sum() + (~known & (scores >= t)).sum() for t in [*tried, np.inf]]
        chosen = ratio * (known & (scores < point.threshold)).sum() + (~known & (scores >= point.threshold)).sum()
        assert chosen == pytest.approx(min(costs))
        assert point.sensitivity.value == pytest.approx((scores >= point.threshold)[known].mean())
        assert point.specificity.low < point.specificity.value <= point.specificity.high
    point = ranking.sensitivity_at_specificity(known, scores, 0.9, resamples=50)
    best = max((scores >= t)[known].mean() for t in [*tried, np.inf] if (scores < t)[~known].mean() >= 0.9)
    assert point.sensitivity.value == pytest.approx(best)
    assert point.specificity.value >= 0.9
    with pytest.raises(ArgumentError, match="positives and negatives"):
        ranking.operating_point([1, 1], [0.1, 0.2])
    with pytest.raises(ArgumentError, match="cost_ratio"):
        ranking.operating_point([1, 0], [0.1, 0.2], cost_ratio=0)


# two classifiers


def test_comparison_by_hand():
    truth = np.array([0] * 10 + [1] * 10)
    first, second = np.eye(2)[truth] * 0.8 + 0.1, np.eye(2)[truth] * 0.8 + 0.1
    first[:2], second[:9] = first[:2, ::-1], second[:9, ::-1]  # two and nine wrong, seven of them alone
    found = compare(truth, first, second)
    assert (found.only_first, found.only_second) == (7, 0)
    assert found.p_value == pytest.approx(2 * 0.5**7)
    assert found.differences["accuracy"].value == pytest.approx(0.35)
    # paired: the difference is a mean of 0 and 1, whatever both have in common
    assert found.differences["accuracy"].low == pytest.approx(0.15, abs=0.051)
    same = compare(truth, first, first)
    assert (same.p_value, same.differences["auroc_macro"].low, same.differences["auroc_macro"].high) == (1.0, 0.0, 0.0)
    json_ready = found.to_dict()
    assert json_ready["differences"]["accuracy"]["value"] == pytest.approx(0.35)


def test_comparison_of_several_labels():
    known, scores = several_labels()
    worse = np.clip(scores + np.random.default_rng(0).normal(0, 0.3, scores.shape), 0.01, 0.99)
    found = compare(known, scores, worse)
    assert found.differences["auroc_macro"].low > 0
    assert found.first["exact_match_accuracy"] == pytest.approx(metrics.accuracy_score(known, scores > 0.5))
    with pytest.raises(ArgumentError, match="shape"):
        compare(known, scores, worse[:, :2])


# calibration


def test_reliability_and_error_by_hand():
    confidence = np.array([0.55, 0.6, 0.6, 0.7, 0.9, 0.95])
    right = np.array([0, 1, 1, 0, 1, 1])
    low, middle, high = calibration.reliability(confidence, right, bins=3)
    assert [found.count for found in (low, middle, high)] == [3, 1, 2]  # equal confidences stay together
    assert (low.confidence, low.accuracy) == pytest.approx((1.75 / 3, 2 / 3))
    gap = abs(1.75 - 2) + abs(0.7 - 0) + abs(1.85 - 2)
    assert calibration.expected_error(confidence, right, bins=3) == pytest.approx(gap / 6)
    assert calibration.expected_error([0.8] * 10, [1] * 8 + [0] * 2) == pytest.approx(0, abs=1e-12)


def test_the_temperature_that_was_put_in_is_found():
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(20_000, 5))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (shares.cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    for factor in (0.5, 1.0, 3.0):
        assert calibration.fit_temperature(factor * logits, truth) == pytest.approx(factor, rel=0.03)
    known = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    assert calibration.fit_temperature(3 * logits, known) == pytest.approx(3, rel=0.03)
    before_after = calibration.summary(3 * logits, truth, 3.0, "softmax")
    assert before_after["after"]["ece"] < 0.015 < 0.1 < before_after["before"]["ece"]


def test_a_few_images_that_are_all_right_do_not_make_it_certain():
    truth = np.arange(30) % 3
    temperature = calibration.fit_temperature(6.0 * np.eye(3)[truth], truth)
    shares = np.exp(6.0 / temperature) / (np.exp(6.0 / temperature) + 2)
    assert 0.94 < shares < 0.98  # about 1 - 1/32
    assert calibration.fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
