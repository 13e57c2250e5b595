import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from resfit import artifact, classifier
from resfit.classifier import Classifier, fit
from resfit.errors import ArgumentError, ArtifactError, DataError
from tests.pictures import picture, tiny_body, write_folder, write_picture

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", each=15)


@pytest.fixture(scope="module")
def fitted(body, folder, tmp_path_factory):
    return fit(folder, model=body, out=tmp_path_factory.mktemp("fitted") / "colours.resfit", seed=1)


@pytest.fixture(scope="module")
def out(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "colours.resfit"
    fitted.save(path)
    return path


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# fit


def test_fit_tells_colours_apart(fitted):
    assert fitted.classes == ("blue", "green", "red")
    assert fitted.metrics["images"] == {"found": 45, "skipped": 0, "train": 36, "test": 9}
    assert fitted.run.test.accuracy == fitted.metrics["test"]["accuracy"] == 1.0
    assert fitted.metrics["test"]["interval"] == pytest.approx([0.7009, 1.0], abs=1e-4)
    assert fitted.recipe.strategy == "probe"
    assert fitted.recipe.C in [score["C"] for score in fitted.metrics["cross_validation"]]


def test_test_images_are_no_training_images_and_measured_as_the_model_predicts(fitted, out):
    rows = rows_of(out / "test_predictions.csv")
    assert len(rows) == 9
    predictions = fitted.predict([row["path"] for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert (row["label"], row["predicted"]) == (Path(row["path"]).parent.name, prediction.label)
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-4)


def test_equal_seeds_give_equal_classifiers(body, folder, fitted):
    again = fit(folder, model=body, seed=1)
    np.testing.assert_array_equal(again.head().kernel, fitted.head().kernel)
    assert again.metrics == fitted.metrics
    assert again.run.computed == 0
    assert fit(folder, model=body, seed=2).metrics != fitted.metrics


def test_groups_are_not_split(body, tmp_path):
    rows = ["path,label,patient"]
    for number in range(24):
        colour = ("blue", "red")[number % 2]
        path = write_picture(tmp_path / f"{number}.png", colour, number)
        rows.append(f"{path.name},{colour},p{number // 4}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    found = fit(table, model=body, group_column="patient", out=tmp_path / "out", test_share=0.3)
    assert found.recipe.grouped
    tested = {int(Path(row["path"]).stem) for row in rows_of(tmp_path / "out" / "test_predictions.csv")}
    assert tested
    for group in {number // 4 for number in tested}:
        assert set(range(4 * group, 4 * group + 4)) <= tested


def test_strength_is_chosen_across_groups(body, tmp_path):
    """Near copies of plain colours, a random label for each: only folds through the groups seem to predict it."""
    from PIL import Image

    random = np.random.default_rng(0)
    rows = ["path,label,group"]
    labels = random.permutation(np.arange(24) % 2)
    for group in range(24):
        colour = random.integers(0, 256, 3)
        for copy in range(6):
            image = np.clip(colour + random.normal(0, 1, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"{group}-{copy}.png")
            rows.append(f"{group}-{copy}.png,class {labels[group]},{group}")
    (tmp_path / "table.csv").write_text("\n".join(rows))

    def best(**options):
        found = fit(tmp_path / "table.csv", model=body, **options)
        return max(score["accuracy"] for score in found.metrics["cross_validation"])

    assert best() < 0.75 < best(group_column="none")


def test_splits_of_the_data_are_kept(body, tmp_path):
    write_folder(tmp_path / "d" / "train", each=6)
    write_folder(tmp_path / "d" / "test", each=3, colours=("blue", "red"))
    found = fit(tmp_path / "d", model=body, out=tmp_path / "out")
    assert found.metrics["images"]["train"] == 18
    assert {Path(row["path"]).parts[-3] for row in rows_of(tmp_path / "out" / "test_predictions.csv")} == {"test"}


def test_unusable_images_are_listed(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=12)
    (folder / "red" / "003.png").write_bytes(b"")
    (folder / "red" / "name, with\nnewline.png").write_bytes(b"nothing")
    found = fit(folder, model=body, out=tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "skipped.csv")
    assert {(Path(row["path"]).name, row["reason"]) for row in rows} == {
        ("003.png", "empty file"),
        ("name, with\nnewline.png", "not an image of a known format"),
    }
    assert found.metrics["images"]["skipped"] == 2
    assert len(found.run.skipped) == 2


def test_too_many_unusable_images_stop_the_fit(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=10)
    for number in range(4):
        (folder / "red" / f"{number:03}.png").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"at most 10%.*4 of 30 \(13.3%\).*listed in .*skipped.csv"):
        fit(folder, model=body, out=out)
    assert len(rows_of(out / "skipped.csv")) == 4
    assert [path.name for path in out.iterdir()] == ["skipped.csv"]
    assert fit(folder, model=body, out=out, max_skipped=0.2).metrics["images"]["skipped"] == 4  # same OUT again
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"out\.skipped\.csv"):
        fit(folder, model=body, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_class_without_a_usable_image(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=20)
    write_folder(folder, each=3, colours=("blue",))
    for number in range(3):
        path = folder / "grey" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="grey"):
        fit(folder, model=body)


def test_arguments_of_fit(body, folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"strategy must be one of .*'probe'.*Received: 'finetune'"):
        fit(folder, model=body, strategy="finetune")
    with pytest.raises(ArgumentError, match="engine must be"):
        fit(folder, model=body, engine="fast")
    with pytest.raises(ArgumentError, match="max_skipped"):
        fit(folder, model=body, max_skipped=1.5)
    with pytest.raises(ArgumentError, match="test_share"):
        fit(folder, model=body, test_share=0)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match="holds something else"):
        fit(folder, model=body, out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


# predict


def test_file_array_and_model_say_the_same(fitted, folder):
    path = folder / "red" / "000.png"
    array = picture("red", 0)
    from_file = fitted.predict_proba(path)
    np.testing.assert_array_equal(from_file, fitted.predict_proba(array))
    np.testing.assert_array_equal(from_file, fitted.predict_proba(array[None]))
    np.testing.assert_allclose(from_file, fitted.predict_proba(array.astype(np.float32)), atol=1e-6)
    from resfit.data.decode import decode_image

    image = decode_image(path, fitted.input_spec)
    np.testing.assert_allclose(from_file, fitted.model.predict(image[None], verbose=0), atol=1e-6)
    np.testing.assert_allclose(from_file, fitted.predict_proba(image), atol=1e-6)
    np.testing.assert_allclose(from_file, fitted.predict_proba(path, engine="openvino"), atol=1e-5)


def test_predictions_are_in_order_with_their_classes(fitted, folder):
    paths = [folder / colour / "004.png" for colour in ("red", "blue", "green")]
    predictions = fitted.predict(paths, top=2, batch_size=2)
    assert [item.label for item in predictions] == ["red", "blue", "green"]
    assert [item.path for item in predictions] == paths
    for item in predictions:
        assert len(item.probabilities) == 2
        assert next(iter(item.probabilities.items())) == (item.label, item.probability)
    assert len(fitted.predict(folder)) == 45
    everything = fitted.predict(paths[0])[0].probabilities
    assert sum(everything.values()) == pytest.approx(1, abs=1e-5)


def test_unusable_image_among_others(fitted, folder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    good = folder / "red" / "001.png"
    predictions = fitted.predict([bad, good])
    assert [item.label for item in predictions] == [None, "red"]
    assert predictions[0].error == "not an image of a known format"
    with pytest.raises(DataError, match=r"bad\.jpg: not an image"):
        fitted.predict_proba([bad, good])
    with pytest.raises(DataError, match="does not exist"):
        fitted.predict(tmp_path / "typo.jpg")


def test_arrays_that_are_no_images(fitted):
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 4)), np.full((4, 4, 3), "x"), np.zeros((0, 4, 3))):
        with pytest.raises(ArgumentError, match="images must be"):
            fitted.predict(array)
    assert fitted.predict([]) == []


# evaluate and embed


def test_evaluation_counts_by_hand(fitted, tmp_path):
    folder = write_folder(tmp_path / "d", each=4, colours=("green", "red"))
    write_picture(folder / "green" / "wrong.png", "red", 50)
    (folder / "red" / "bad.png").write_bytes(b"")
    result = fitted.evaluate(folder)
    assert result.confusion.tolist() == [[0, 0, 0], [0, 4, 1], [0, 0, 4]]
    assert result.accuracy == pytest.approx(8 / 9)
    assert [item.reason for item in result.skipped] == ["empty file"]
    predicted = [item.label for item in fitted.predict(sorted((folder / "green").glob("*.png")))]
    assert predicted == ["green"] * 4 + ["red"]


def test_evaluation_of_unknown_class(fitted, tmp_path):
    (write_folder(tmp_path / "d", each=3) / "red").rename(tmp_path / "d" / "reds")
    with pytest.raises(DataError, match=r"Received: 'reds'\. Did you mean 'red'"):
        fitted.evaluate(tmp_path / "d")


def test_embedding_is_what_the_head_reads(fitted, folder, tmp_path):
    found = fitted.embed(folder)
    assert found.computed == 0  # the fit has computed them: body and classifier share the cache
    assert found.features.shape == (45, 16)
    assert found.labels[::15] == ("blue", "green", "red")
    np.testing.assert_allclose(
        fitted.head().probabilities(found.features), fitted.predict_proba(list(found.paths)), atol=1e-5
    )
    found.save(tmp_path / "f.parquet")
    found.save(tmp_path / "f.npz")
    import pandas as pd

    table = pd.read_parquet(tmp_path / "f.parquet")
    assert table["path"].tolist() == [str(path) for path in found.paths]
    assert table["label"].tolist() == list(found.labels)
    np.testing.assert_array_equal(np.stack(table["features"].to_list()), found.features)
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], found.features)
        assert arrays["label"].tolist() == list(found.labels)
    with pytest.raises(ArgumentError, match=r"\.parquet or \.npz"):
        found.save(tmp_path / "f.xlsx")


def test_embedding_without_classes(body, tmp_path):
    write_picture(tmp_path / "d" / "a.png", "red", 0)
    write_picture(tmp_path / "d" / "b.png", "red", 1)
    found = classifier.embed(tmp_path / "d", model=body)
    assert found.labels == (None, None)
    np.testing.assert_array_equal(classifier.embed(tmp_path / "d" / "b.png", model=body).features, found.features[1:])


# the artifact


def test_round_trip_is_exact(fitted, out, folder):
    loaded = Classifier.load(out)
    images = np.stack([picture("red", n) for n in range(3)])
    np.testing.assert_array_equal(loaded.predict_proba(images), fitted.predict_proba(images))
    for attribute in ("classes", "input_spec", "recipe", "metrics", "fingerprint", "versions"):
        assert getattr(loaded, attribute) == getattr(fitted, attribute), attribute
    assert loaded.model.architecture == fitted.model.architecture
    assert loaded.embed(folder).computed == 0  # the network is known to be the same


def test_saved_again_it_is_the_same(out, tmp_path):
    Classifier.load(out).save(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "model.keras",
        "classifier.json",
        "skipped.csv",
        "test_predictions.csv",
    }
    one, two = (json.loads((path / "classifier.json").read_text()) for path in (out, tmp_path / "copy"))
    assert {**one, "files": None} == {**two, "files": None}
    assert (tmp_path / "copy" / "test_predictions.csv").read_bytes() == (out / "test_predictions.csv").read_bytes()


def test_model_loads_in_plain_keras(fitted, out):
    import keras

    model = keras.models.load_model(out / "model.keras")
    images = np.stack([picture("red", n, (16, 16)) for n in range(3)])
    np.testing.assert_allclose(model.predict(images, verbose=0), fitted.predict_proba(images), atol=1e-6)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.keras", lambda content: None, "model.keras cannot be read"),
        ("model.keras", lambda content: content[:-100], "damaged or was changed"),
        ("model.keras", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "damaged or was changed"),
        ("classifier.json", lambda content: None, "which has none"),
        ("classifier.json", lambda content: content[:300], "classifier.json cannot be read"),
        ("classifier.json", lambda content: b"[]", "does not describe"),
        ("classifier.json", lambda content: content.replace(b'"format": 1', b'"format": 99'), "format 99"),
        ("classifier.json", lambda content: content.replace(b'"recipe"', b'"other"'), "missing entry 'recipe'"),
        ("classifier.json", lambda content: content.replace(b'"files"', b'"other"'), "damaged or was changed"),
    ],
)
def test_damaged_artifact(out, tmp_path, file, change, message):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    content = change((copy / file).read_bytes())
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Classifier.load(copy)


def test_missing_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="no folder"):
        Classifier.load(tmp_path / "none")


def test_artifact_replaces_an_artifact_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    artifact.write(out, lambda path: path.write_bytes(b"one"), {}, {"skipped.csv": b"a"})
    artifact.write(out, lambda path: path.write_bytes(b"two"), {}, {})
    assert (out / "model.keras").read_bytes() == b"two"
    assert sorted(path.name for path in out.iterdir()) == ["classifier.json", "model.keras"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="something else"):
        artifact.write(tmp_path / "file", lambda path: None, {}, {})


def test_failure_while_saving_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    artifact.write(out, lambda path: path.write_bytes(b"one"), {}, {})

    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        artifact.write(out, full, {}, {})
    assert (out / "model.keras").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_kill_while_saving_leaves_no_half_artifact(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        artifact.write(out, lambda path: path.write_bytes(b"old"), {}, {})
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from resfit import artifact

        def die(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        artifact.write(Path(sys.argv[1]), die, {}, {})
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program, out], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert out.exists() == exists
    if exists:
        assert (out / "model.keras").read_bytes() == b"old"
    artifact.write(out, lambda path: path.write_bytes(b"new"), {}, {})
    assert (out / "model.keras").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed one left is gone
