import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resfit.errors import ArgumentError, DataError
from resfit.transfer.heads import CvScore, _choose, fit_linear


def clouds(n=240, features=12, classes=4, seed=0, spread=1.0):
    """Overlapping classes on features whose means and scales differ by orders of magnitude."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = random.normal(0, spread, (classes, features))
    scales = 10.0 ** random.uniform(-2, 2, features)
    rows = (centres[labels] + random.normal(size=(n, features))) * scales + 3 * scales
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_dense_layer_gives_scikit_learns_probabilities(classes):
    import keras

    rows, labels = clouds(classes=classes)
    head = fit_linear(rows, labels, seed=0)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=head.C, tol=1e-8, max_iter=5000))
    expected.fit(rows.astype(np.float64), labels)
    layer = keras.layers.Dense(classes, activation="softmax")
    layer.build((None, rows.shape[1]))
    layer.set_weights([head.kernel, head.bias])
    reference = expected.predict_proba(rows.astype(np.float64))
    # scikit-learn's own solution moves by some 1e-4 with its tolerance
    np.testing.assert_allclose(np.asarray(layer(rows)), reference, atol=5e-4)
    np.testing.assert_allclose(head.probabilities(rows), np.asarray(layer(rows)), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_folding_the_standardisation_changes_nothing(classes):
    """The very estimator that was fitted, before and after its scaling went into the kernel."""
    rows, labels = clouds(classes=classes)
    head = fit_linear(rows, labels, seed=0, grid=(0.1,))
    scaler = StandardScaler().fit(rows.astype(np.float64))
    estimator = LogisticRegression(C=0.1, tol=1e-5, max_iter=1000)
    estimator.fit(scaler.transform(rows.astype(np.float64)).astype(np.float32), labels)
    reference = estimator.predict_proba(scaler.transform(rows.astype(np.float64)))
    np.testing.assert_allclose(head.probabilities(rows), reference, atol=1e-5)


def test_strength_is_chosen_where_it_matters():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    rows = random.normal(size=(60, 100)).astype(np.float32)
    rows[:, 0] += labels  # one weak feature among a hundred of noise: much regularisation
    weak = fit_linear(rows, labels, seed=0)
    clear, separable = clouds(spread=5.0)
    strong = fit_linear(clear, separable, seed=0)
    assert len(weak.cv_scores) > 1
    assert weak.folds == strong.folds == 5
    assert weak.C < strong.C


def test_choice_is_by_accuracy_then_log_loss():
    scores = (CvScore(0.1, 0.9, 0.80), CvScore(1.0, 0.7, 0.90), CvScore(10.0, 0.6, 0.899), CvScore(100.0, 0.2, 0.7))
    assert _choose(scores, 1000) == 10.0
    assert _choose(scores, 10_000_000) == 1.0


def test_equal_seeds_give_equal_heads():
    rows, labels = clouds()
    first, second = fit_linear(rows, labels, seed=3), fit_linear(rows, labels, seed=3)
    np.testing.assert_array_equal(first.kernel, second.kernel)
    assert first.cv_scores == second.cv_scores
    assert fit_linear(rows, labels, seed=4).cv_scores != first.cv_scores


def test_features_are_not_changed():
    rows, labels = clouds()
    before = rows.copy()
    rows.flags.writeable = False
    fit_linear(rows, labels)
    np.testing.assert_array_equal(rows, before)


def test_rare_class_that_is_missing_from_folds():
    rows, labels = clouds(n=60, classes=3, spread=4.0)
    labels = labels.copy()
    labels[labels == 2] = 1
    labels[0] = 2  # one image of its own class
    head = fit_linear(rows, labels, seed=0)
    assert head.kernel.shape == (12, 3)
    assert head.probabilities(rows[:1]).argmax() == 2
    assert all(np.isfinite(score.log_loss) for score in head.cv_scores)


def test_class_without_images_gets_no_probability():
    rows, labels = clouds(n=60, classes=2)
    head = fit_linear(rows, labels * 2, classes=4)
    probabilities = head.probabilities(rows)
    assert probabilities.shape == (60, 4)
    assert probabilities[:, [1, 3]].max() == 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_groups_stay_on_one_side_of_a_fold():
    """Groups of near copies with random labels: only folds through the groups can seem to predict them."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    centres = random.normal(size=(30, 40))
    rows = (centres[groups] + random.normal(0, 0.01, (240, 40))).astype(np.float32)
    labels = random.permutation(np.arange(30) % 2)[groups]
    through = max(score.accuracy for score in fit_linear(rows, labels, seed=0).cv_scores)
    grouped = fit_linear(rows, labels, seed=0, sample_groups=[f"g{group}" for group in groups])
    assert through > 0.95
    assert max(score.accuracy for score in grouped.cv_scores) < 0.7


def test_too_little_to_choose_on():
    rows, _ = clouds(n=3)
    head = fit_linear(rows, [0, 1, 2])
    assert head.folds == 0
    assert head.cv_scores == ()
    assert head.probabilities(rows).argmax(axis=1).tolist() == [0, 1, 2]


def test_constant_feature_is_harmless():
    rows, labels = clouds()
    rows[:, 3] = 7.0
    head = fit_linear(rows, labels)
    assert np.isfinite(head.kernel).all()
    assert (head.probabilities(rows).argmax(axis=1) == labels).mean() > 0.8


def test_what_is_refused():
    rows, labels = clouds(n=20)
    with pytest.raises(DataError, match="two classes"):
        fit_linear(rows, np.zeros(20))
    with pytest.raises(ArgumentError, match=r"0\.\.2"):
        fit_linear(rows, labels, classes=3)
    with pytest.raises(ArgumentError, match="n entries"):
        fit_linear(rows, labels[:5])
    with pytest.raises(ArgumentError, match="sample_groups"):
        fit_linear(rows, labels, sample_groups=[1])
    rows[2, 2] = np.inf
    with pytest.raises(DataError, match="finite"):
        fit_linear(rows, labels)
