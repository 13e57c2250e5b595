import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resfit.errors import ArgumentError, DataError
from resfit.numerics import activated
from resfit.tasks.classification.heads import base, few_shot, linear, mlp, solver
from resfit.tasks.classification.heads.base import fit_head
from resfit.tasks.classification.heads.linear import CvScore, _choose, fit_linear
from resfit.training.settings import Tuning


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
    nothing = fit_linear(np.full((8, 20), 3.0, np.float32), np.arange(8) % 2)
    np.testing.assert_allclose(nothing.probabilities(np.ones((2, 20))), 0.5, atol=1e-6)


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


# the same optimum in chunks


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balance", [False, True])
def test_chunks_find_scikit_learns_optimum(classes, balance, monkeypatch):
    monkeypatch.setattr(solver, "_CHUNK", 37)
    rows, labels = clouds(classes=classes)
    labels = np.where(np.arange(len(labels)) % 3, labels, 0)  # more of the first class
    expected = fit_linear(rows, labels, grid=(0.1,), balance=balance)
    monkeypatch.setattr(linear, "_IN_MEMORY", 0)
    received = fit_linear(rows, labels, grid=(0.1,), balance=balance)
    np.testing.assert_allclose(received.probabilities(rows), expected.probabilities(rows), atol=1e-3)
    assert (
        np.abs(fit_linear(rows, labels, grid=(0.001,)).probabilities(rows) - expected.probabilities(rows)).max() > 0.05
    )


def test_chunks_choose_the_same_strength(monkeypatch):
    rows, labels = clouds(n=300, spread=0.7)
    expected = fit_linear(rows, labels, seed=1)
    monkeypatch.setattr(linear, "_IN_MEMORY", 0)
    received = fit_linear(rows, labels, seed=1)
    assert (received.C, received.folds) == (expected.C, expected.folds)
    for one, two in zip(received.cv_scores, expected.cv_scores, strict=True):
        assert one.accuracy == pytest.approx(two.accuracy, abs=0.01)
        assert one.log_loss == pytest.approx(two.log_loss, rel=1e-3)


def test_strength_is_chosen_on_some_where_there_are_many(monkeypatch):
    monkeypatch.setattr(linear, "_IN_MEMORY", 0)
    monkeypatch.setattr(linear, "_CHOOSING", 100)
    rows, labels = clouds(n=400)
    labels = labels.copy()
    labels[labels == 3] = 2  # a class without an image
    head = fit_linear(rows, labels, classes=4, seed=1)
    assert head.cv_scores
    assert head.probabilities(rows)[:, 3].max() == 0
    assert (head.probabilities(rows).argmax(axis=1) == labels).mean() > 0.8


def test_moments_of_rows_far_from_zero(monkeypatch):
    monkeypatch.setattr(solver, "_CHUNK", 100)
    rows = (1e4 + np.random.default_rng(0).normal(0, 1, (1000, 3))).astype(np.float32)
    mean, deviation = solver.moments(rows)
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, rows.astype(np.float64).std(axis=0), rtol=1e-9)


def test_smoothed_labels_give_smoother_probabilities():
    rows, labels = clouds(spread=4.0)
    plain, smooth = (fit_linear(rows, labels, grid=(1.0,), label_smoothing=s) for s in (0.0, 0.2))
    own = [head.probabilities(rows)[np.arange(len(labels)), labels].mean() for head in (plain, smooth)]
    assert own[0] > 0.97
    assert own[1] == pytest.approx(0.85, abs=0.02)  # 0.8 + 0.2 / 4
    assert (smooth.probabilities(rows).argmax(axis=1) == labels).mean() > 0.97


@pytest.mark.parametrize("different", [60, 30])
def test_fewer_images_than_features_is_the_same_problem(different, monkeypatch):
    random = np.random.default_rng(0)
    rows = (random.normal(size=(different, 200)) * 10.0 ** random.uniform(-2, 2, 200)).astype(np.float32)
    rows = np.tile(rows, (60 // different, 1))  # rows that repeat span less than their number
    labels = np.arange(60) % 3
    rows[:, :5] += labels[:, None]
    before = rows.copy()
    short = fit_linear(rows, labels, seed=0)
    monkeypatch.setattr(linear, "_FEWER", 0.0)
    whole = fit_linear(rows, labels, seed=0)
    assert short.C == whole.C
    fresh = (random.normal(size=(40, 200)) * rows.std(axis=0)).astype(np.float32)
    np.testing.assert_allclose(short.probabilities(fresh), whole.probabilities(fresh), atol=2e-3)
    np.testing.assert_array_equal(rows, before)


# several labels


def test_several_labels_are_binary_regressions():
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 8)).astype(np.float32)
    targets = (rows[:, :3] + random.normal(0, 0.7, (300, 3)) > [0, 0.5, 1]).astype(int)
    head = fit_linear(rows, targets, seed=0)
    assert head.activation == "sigmoid"
    assert len(head.cv_scores) > 1
    standard = StandardScaler().fit_transform(rows.astype(np.float64))
    for index in range(3):
        expected = LogisticRegression(C=head.C, tol=1e-8, max_iter=5000).fit(standard, targets[:, index])
        np.testing.assert_allclose(
            head.probabilities(rows)[:, index], expected.predict_proba(standard)[:, 1], atol=1e-3
        )
    with pytest.raises(ArgumentError, match="0 or 1"):
        fit_linear(rows, targets * 2)
    with pytest.raises(DataError, match="every label all or none"):
        fit_linear(rows, np.ones((300, 3)))


def test_balance_helps_the_rare_class():
    rows, labels = clouds(n=400, classes=2, spread=0.6)
    labels = labels.copy()
    rare = np.flatnonzero(labels == 1)[20:]
    rows, labels = np.delete(rows, rare, axis=0), np.delete(labels, rare)
    recall = []
    for balance in (False, True):
        guesses = fit_linear(rows, labels, grid=(0.1,), balance=balance).probabilities(rows).argmax(axis=1)
        recall.append((guesses[labels == 1] == 1).mean())
    assert recall[1] > recall[0] + 0.2


# the others


@pytest.mark.parametrize("kind", ["mlp", "nearest_mean", "knn"])
def test_other_heads_tell_clouds_apart(kind):
    rows, labels = clouds(n=200, features=24, spread=3.0, seed=2)
    rows = rows / rows.std(axis=0)
    head = fit_head(kind, rows[:120], labels[:120], 4, seed=0)
    probabilities = head.probabilities(rows[120:])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert (probabilities.argmax(axis=1) == labels[120:]).mean() > 0.9


@pytest.mark.parametrize("kind", tuple(base.HEADS))
def test_as_keras_layers_on_a_network_every_head_says_the_same(kind, tmp_path):
    import keras

    from resfit.tasks.classification.heads import layers as head_layers  # noqa: F401  # registers the layer of the neighbours

    rows, labels = clouds(n=90, features=10, classes=3)
    head = fit_head(kind, rows, labels, 3, seed=0)
    inputs = keras.Input((10,))
    body = keras.Model(inputs, keras.layers.Identity(name="avg_pool")(inputs), name="body")
    model, layers = base.attach(body, head)
    assert len(layers) >= 1
    expected = head.probabilities(rows)
    np.testing.assert_allclose(model.predict(rows, verbose=0), expected, atol=2e-5)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again.predict(rows, verbose=0), expected, atol=2e-5)
    part = base.ModelHead(keras.Model(model.get_layer("avg_pool").output, model.outputs[0]), "softmax")
    np.testing.assert_allclose(part.probabilities(rows), expected, atol=2e-5)
    np.testing.assert_allclose(activated(part.logits(rows), "softmax"), expected, atol=1e-4)
    body = keras.Model(inputs, keras.layers.Identity(name="predictions")(inputs))
    logits, _ = base.attach(body, head, logits=True)
    np.testing.assert_allclose(logits.predict(rows, verbose=0), head.logits(rows), rtol=1e-3, atol=1e-3)


def test_mlp_learns_what_a_line_cannot():
    random = np.random.default_rng(0)
    rows = random.uniform(-1, 1, (400, 2)).astype(np.float32) * [1, 100] + [0, 1000]
    labels = ((rows[:, 0] > 0) ^ (rows[:, 1] > 1000)).astype(int)
    tuning = Tuning(epochs=40, batch_size=32, optimizer="adam", learning_rate=1e-2)
    head = mlp.fit_mlp(rows.astype(np.float32), np.eye(2)[labels], hidden=64, tuning=tuning)
    assert (head.probabilities(rows).argmax(axis=1) == labels).mean() > 0.95
    assert (fit_linear(rows, labels).probabilities(rows).argmax(axis=1) == labels).mean() < 0.7
    again = mlp.fit_mlp(rows.astype(np.float32), np.eye(2)[labels], hidden=64, tuning=tuning)
    np.testing.assert_array_equal(again.kernels[0], head.kernels[0])


def test_nearest_mean_by_hand():
    rows = np.array([[3, 0.1], [3, -0.1], [0, 2.1], [0, 1.9], [-3, 0]], np.float32)
    labels = np.array([0, 0, 1, 1, 2])
    head = few_shot.fit_nearest_mean(rows, labels, 4)
    centre = rows.mean(axis=0)
    units = (rows - centre) / np.linalg.norm(rows - centre, axis=1, keepdims=True)
    means = np.stack([units[:2].mean(axis=0), units[2:4].mean(axis=0), units[4]])
    distances = ((units[:, None] - means) ** 2).sum(axis=2) / head.temperature
    shares = np.exp(-distances) / np.exp(-distances).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.probabilities(rows)[:, :3], shares, atol=1e-5)
    assert head.probabilities(rows)[:, 3].max() == 0  # a class without an image


def test_neighbours_by_hand():
    angles = np.array([0, 10, 20, 100, 110, 120, 240], np.float32) * np.pi / 180
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    head = few_shot.fit_neighbours(rows, labels, 3, count=3)
    units = (rows - rows.mean(axis=0)) / np.linalg.norm(rows - rows.mean(axis=0), axis=1, keepdims=True)
    cosines = units @ units.T
    for i in range(len(rows)):
        nearest = np.argsort(-cosines[i])[:3]
        votes = np.zeros(3)
        for j in nearest:
            votes[labels[j]] += np.exp((cosines[i, j] - 1) / head.temperature)
        np.testing.assert_allclose(head.probabilities(rows[i : i + 1])[0], votes / votes.sum(), atol=1e-4)
    assert few_shot.fit_neighbours(rows, labels, 3).count in few_shot.NEIGHBOURS
    with pytest.raises(ArgumentError, match=r"1\.\.7"):
        few_shot.fit_neighbours(rows, labels, 3, count=8)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("svm", {}, "head must be one of"),
        ("linear", {"focal": 2.0}, "focal loss is for"),
        ("knn", {"balance": True}, "balance is for head='linear' and 'mlp'"),
    ],
)
def test_options_that_a_head_does_not_have(kind, options, message):
    rows, labels = clouds(n=20)
    with pytest.raises(ArgumentError, match=message):
        fit_head(kind, rows, labels, 4, **options)
