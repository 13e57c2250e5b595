"""What a fitted classifier knows of itself: its temperature, its prediction sets, what is unlike its training."""

import hashlib
import io
import json

import numpy as np
import pytest

from resfit.errors import ArgumentError, ArtifactError, ArtifactWarning
from resfit.evaluation import ood, reference_images
from resfit.tasks.classification import Classifier, fit
from tests.pictures import COLOURS, picture, tiny_body, write_folder


def write_hard(folder, each, seed=0):
    """Writes noisy colours, some of which look like another's."""
    from PIL import Image

    random = np.random.default_rng(seed)
    names = list(COLOURS)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            looks = name if random.random() > 0.25 else names[random.integers(3)]
            noise = np.clip(picture(looks, 1000 * seed + number).astype(int) + random.normal(0, 60, 3), 0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hard(tmp_path_factory.mktemp("hard") / "images", each=60)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return write_hard(tmp_path_factory.mktemp("fresh") / "images", each=150, seed=1)


@pytest.fixture(scope="module")
def fitted(body, folder, tmp_path_factory):
    return fit(folder, model=body, out=tmp_path_factory.mktemp("out") / "hard.resfit", seed=3)


@pytest.fixture(scope="module")
def out(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "hard.resfit"
    fitted.save(path)
    return path


def test_temperature_is_fitted_on_images_left_out(fitted):
    found = fitted.calibration
    assert (found.count, found.source) == (fitted.metrics["images"]["train"], "cross-validation")
    assert fitted.temperature != 1.0
    assert found.effect["after"]["log_loss"] <= found.effect["before"]["log_loss"] + 1e-3


def test_one_temperature_everywhere(fitted, out, fresh):
    description = json.loads((out / "classifier.json").read_text())
    assert description["temperature"] == fitted.temperature
    loaded = Classifier.load(out)
    paths = sorted((fresh / "red").glob("*.png"))[:20]
    said = loaded.predict_proba(paths)
    plain = loaded.model.predict(loaded_images(loaded, paths), verbose=0).astype(float)
    powers = plain ** (1 / loaded.temperature)
    np.testing.assert_allclose(said, powers / powers.sum(axis=1, keepdims=True), atol=2e-6)
    assert np.abs(said - plain).max() > 1e-3
    assert loaded.predict(paths[0])[0].probability == pytest.approx(said[0].max(), abs=1e-6)
    assert loaded.explain(paths[0])[0].probability == pytest.approx(said[0].max(), abs=1e-5)
    features = loaded.embed(paths).features
    np.testing.assert_allclose(loaded.head().probabilities(features), said, atol=1e-5)
    measured = loaded.evaluate(fresh, intervals=False)
    truth = np.repeat(np.arange(3), 150)
    probabilities = loaded.predict_proba(fresh)
    assert measured.log_loss == pytest.approx(-np.log(probabilities[np.arange(450), truth]).mean(), abs=1e-5)


def loaded_images(classifier, paths):
    from resfit.data.decode import decode_image

    return np.stack([decode_image(path, classifier.input_spec) for path in paths])


def test_temperature_helps_on_images_it_was_not_fitted_on(fitted, fresh):
    truth = np.repeat(np.arange(3), 150)
    probabilities = fitted.predict_proba(fresh).astype(float)
    plain = probabilities**fitted.temperature
    plain /= plain.sum(axis=1, keepdims=True)
    losses = [-np.log(shares[np.arange(450), truth]).mean() for shares in (probabilities, plain)]
    assert losses[0] <= losses[1] + 0.005


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_prediction_sets_cover(out, fresh, method):
    loaded = Classifier.load(out)
    paths = sorted(fresh.glob("*/*.png"))
    predictions = loaded.predict(paths, coverage=0.9, set_method=method)
    covered = np.mean([path.parent.name in p.prediction_set for path, p in zip(paths, predictions, strict=True)])
    # 144 images held out and 450 tested: a deviation of 0.029
    assert 0.9 - 0.075 <= covered <= 0.9 + 0.075
    assert {len(p.prediction_set) for p in predictions} <= {1, 2, 3}
    for p in predictions[::50]:
        assert p.prediction_set[0] == p.label
    wide, narrow = (loaded.predict(paths[:50], coverage=c, set_method=method) for c in (0.97, 0.6))
    assert all(set(a.prediction_set) >= set(b.prediction_set) for a, b in zip(wide, narrow, strict=True))
    assert loaded.predict(paths[0])[0].prediction_set == ()
    with pytest.raises(ArgumentError, match="coverage must lie"):
        loaded.predict(paths[0], coverage=1.5)


def test_a_classifier_of_before_has_no_temperature(fitted, out, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(out, old)
    description = json.loads((old / "classifier.json").read_text())
    del description["temperature"], description["calibration"]
    model = hashlib.sha256((old / "model.keras").read_bytes()).hexdigest()
    description |= {"format": 1, "files": {"model.keras": model}}  # as the first version wrote it
    (old / "SHA256SUMS").unlink()
    (old / "classifier.json").write_text(json.dumps(description))
    (old / "references.npz").unlink()
    (old / "unlike.npz").unlink()
    with pytest.warns(ArtifactWarning):
        loaded = Classifier.load(old)
    assert (loaded.temperature, loaded.references, loaded.unlike) == (1.0, None, None)
    image = picture("red", 5, (16, 16))
    np.testing.assert_allclose(loaded.predict_proba(image), loaded.model.predict(image[None], verbose=0), atol=1e-6)
    prediction = loaded.predict(image)[0]
    assert (prediction.unlike_training, prediction.unlikeness) == (False, None)
    with pytest.raises(ArgumentError, match="calibrated on held-out images"):
        loaded.predict(image, coverage=0.9)
    for temperature in (0, -1, float("nan")):
        (old / "classifier.json").write_text(json.dumps({**description, "temperature": temperature}))
        with pytest.raises(ArtifactError, match=r"temperature"):
            Classifier.load(old)


@pytest.mark.parametrize("kind", ["mlp", "nearest_mean", "knn"])
def test_other_heads_are_calibrated_on_images_left_out(body, folder, fresh, kind, tmp_path):
    found = fit(folder, model=body, head=kind, out=tmp_path / "out", seed=3)
    loaded = Classifier.load(tmp_path / "out")
    assert loaded.calibration.count == (29 if kind == "mlp" else 144)
    paths = sorted(fresh.glob("*/*.png"))[::9]
    said = loaded.predict_proba(paths)
    np.testing.assert_allclose(said, found.predict_proba(paths), atol=1e-6)
    np.testing.assert_allclose(said.sum(axis=1), 1, atol=1e-5)
    rows = [line.split(",") for line in (tmp_path / "out" / "test_predictions.csv").read_text().splitlines()[1:]]
    again = loaded.predict([row[0] for row in rows])
    assert [p.probability for p in again] == pytest.approx([float(row[3]) for row in rows], abs=2e-4)


# unlike the training images


@pytest.fixture(scope="module", params=[True, False])
def plain(request, body, tmp_path_factory):
    """A classifier of plain colours, with and without references."""
    base = tmp_path_factory.mktemp("plain")
    fit(write_folder(base / "images", each=60), model=body, out=base / "out", references=request.param)
    assert (base / "out" / "references.npz").exists() == request.param
    return Classifier.load(base / "out")


def test_foreign_images_are_flagged_and_like_ones_are_not(plain):
    random = np.random.default_rng(0)
    assert plain.unlike.method == ("mahalanobis" if plain.references is None else "knn")
    like = plain.predict([picture(colour, 1000 + n) for colour in COLOURS for n in range(40)])
    assert np.mean([p.unlike_training for p in like]) < 0.08  # one in a hundred is expected, of 144 it was set on
    stripes = np.zeros((20, 16, 16, 3), np.uint8)
    stripes[:, :, ::2] = random.integers(150, 256, (20, 1, 1, 3))
    yellow = np.clip(np.array([230, 220, 30]) + random.normal(0, 25, (20, 24, 24, 3)), 0, 255).astype(np.uint8)
    for foreign in (stripes, yellow, random.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)):
        found = plain.predict(foreign)
        assert all(p.unlike_training for p in found)
        assert min(p.unlikeness for p in found) > max(p.unlikeness for p in like)


def test_references_are_training_images_without_names(fitted, out, folder):
    import hashlib

    from PIL import Image

    found = Classifier.load(out).references
    assert found.features.shape == (144, 16)
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest()[:16]: path for path in folder.glob("*/*.png")}
    tested = {line.split(",")[0] for line in (out / "test_predictions.csv").read_text().splitlines()[1:]}
    for row in (0, 70, 143):
        path = hashes[found.digests[row]]
        assert str(path) not in tested
        assert fitted.classes[found.labels[row]] == path.parent.name
        features = fitted.embed([path]).features[0]
        np.testing.assert_allclose(found.features[row], features, rtol=2e-3, atol=1e-4)
        small = np.asarray(Image.open(io.BytesIO(found.thumbnails[row]))).astype(int)
        assert np.abs(small - np.asarray(Image.open(path)).astype(int)).mean() < 40
        order, cosines = found.nearest(features[None], 3)
        assert found.digests[order[0, 0]] == found.digests[row]
        assert cosines[0, 0] == pytest.approx(1, abs=1e-4)
    (explained,) = Classifier.load(out).explain(path, examples=2)
    assert explained.examples[0].thumbnail == found.thumbnails[explained.examples[0].position]
    assert explained.examples[0].similarity == pytest.approx(1, abs=1e-3)
    content = (out / "references.npz").read_bytes()
    assert b".png" not in content
    assert str(folder).encode() not in content


def test_references_are_few_and_of_every_class():
    labels = np.concatenate([np.zeros(5000, int), np.ones(3, int), np.full(700, 2)])
    order = reference_images.sampling_order(len(labels))
    chosen = reference_images.choose(labels, 64, order)
    assert len(chosen) == 1000 == len(set(chosen.tolist()))
    assert np.bincount(labels[chosen]).tolist() == [499, 3, 498]
    assert len(reference_images.choose(labels, 2048, order)) == reference_images.MAX_BYTES // (2 * 2048 + 2500)


def test_what_is_kept_can_be_told_before_the_split_is_known():
    labels = np.repeat([0, 1, 2], [5000, 40, 1000])
    order = reference_images.sampling_order(len(labels), seed=3)
    likely = reference_images.likely(labels, 64, order)
    assert len(likely) == 1600
    train = np.flatnonzero(np.random.default_rng(1).random(len(labels)) < 0.68)
    chosen = train[reference_images.choose(labels[train], 64, order[train])]
    assert len(chosen) == 1000
    assert np.isin(chosen, likely).mean() > 0.99


@pytest.mark.parametrize("name", ["references.npz", "unlike.npz"])
def test_damaged_parts_are_refused(out, name):
    loaded = Classifier.load(out)
    data = (out / name).read_bytes()

    def read(content):
        if name == "references.npz":
            return reference_images.References.from_bytes(content)
        return ood.OODDetector.from_bytes(content, references=True)

    read(data)
    with np.load(io.BytesIO(data)) as arrays:
        whole = dict(arrays)
    for key, array in whole.items():
        for change in (np.array(["x"], object), array.reshape(-1)[:1], np.zeros((2, 2, 2))):
            target = io.BytesIO()
            np.savez(target, **{**whole, key: change})
            if np.array_equal(change, array):
                continue
            with pytest.raises(ArtifactError):
                read(target.getvalue())
    for content in (b"", b"nothing", data[:-40], data[:200]):
        with pytest.raises(ArtifactError):
            read(content)
    target = io.BytesIO()
    np.savez_compressed(target, **{**whole, "more": np.zeros(9_000_000)})  # a bomb
    with pytest.raises(ArtifactError, match="too much"):
        read(target.getvalue())
    assert loaded.references is not None


def test_scores_by_hand():
    logits = np.array([[0.0, 0.0], [3.0, -1.0]])
    np.testing.assert_allclose(ood.energy(logits), -np.log(np.exp(logits).sum(axis=1)))
    np.testing.assert_allclose(ood.energy(logits, multilabel=True), -np.log1p(np.exp(logits)).sum(axis=1))
    bank = np.eye(8)[np.arange(8)] + 0.1
    rows = bank[:1]
    cosines = np.sort(reference_images.unit(rows) @ reference_images.unit(bank).T)[0]
    assert ood.neighbour_distance(rows, bank)[0] == pytest.approx(1 - cosines[-5])
    assert ood.neighbour_distance(bank, bank, own=True)[0] == pytest.approx(1 - cosines[-6], abs=1e-6)


def test_mahalanobis_is_that_of_the_covariance():
    """With as many directions as features and much data, it is the textbook distance."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 6000)
    mixing = random.normal(size=(4, 4)) / 10
    rows = np.array([[1, 0.2, 0, 0], [0, 1, 0.3, 0]])[labels] + random.normal(size=(6000, 4)) @ mixing
    found = ood.fit_density(rows, labels, 2)
    values = reference_images.unit(rows).astype(float)
    means = np.stack([values[labels == c].mean(axis=0) for c in (0, 1)])
    residual = values - means[labels]
    precision = np.linalg.inv(residual.T @ residual / 6000)
    expected = np.min([np.einsum("ij,jk,ik->i", values - m, precision, values - m) for m in means], axis=0) / 4
    np.testing.assert_allclose(found.score(rows), expected, rtol=0.05)


def test_a_fine_tuned_network_is_calibrated_on_validation_images(folder, tmp_path):
    from tests.training.networks import small_body

    tuning = {"epochs": 2, "batch_size": 24, "learning_rate": 3e-3, "views": 1}
    found = fit(
        folder, model=small_body(4), strategy="finetune", trainable_from="stage4", tuning=tuning, out=tmp_path / "out"
    )
    assert (found.calibration.source, found.calibration.count) == ("validation", found.metrics["images"]["val"])
    loaded = Classifier.load(tmp_path / "out")
    kept = loaded.references
    assert len(kept.labels) == found.metrics["images"]["train"]
    import hashlib

    hashes = {hashlib.sha256(path.read_bytes()).hexdigest()[:16]: path for path in folder.glob("*/*.png")}
    rows = loaded.embed([hashes[digest] for digest in kept.digests[:8]]).features
    np.testing.assert_allclose(kept.features[:8], rows, rtol=0.02, atol=0.02 * np.abs(rows).max())
    assert np.mean([p.unlike_training for p in loaded.predict(folder)]) < 0.2
