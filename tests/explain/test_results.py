import io
import json

import numpy as np
import pytest
from PIL import Image

from resfit.cli import main
from resfit.errors import ArgumentError
from resfit.explain import NeighbourSource, nearest, overlay
from resfit.tasks import classification
from tests.pictures import picture, tiny_body, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", each=8)


@pytest.fixture(scope="module")
def fitted(folder):
    return classification.fit(folder, model=tiny_body())


def test_files_and_arrays_give_the_same(fitted, folder, tmp_path):
    paths = [folder / "red" / "001.png", folder / "blue" / "002.png"]
    (tmp_path / "bad.png").write_bytes(b"nothing")
    by_path = fitted.explain([paths[0], tmp_path / "bad.png", paths[1]], batch_size=2)
    assert [item.label for item in by_path] == ["red", None, "blue"]
    assert [item.path for item in by_path] == [paths[0], tmp_path / "bad.png", paths[1]]
    assert "not an image" in by_path[1].error
    assert by_path[1].to_dict()["probability"] is None
    by_array = fitted.explain(np.stack([picture("red", 1), picture("blue", 2)]))
    for one, other in zip((by_path[0], by_path[2]), by_array, strict=True):
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-4, atol=1e-6)
        assert (one.overlay.shape, one.overlay.dtype) == ((24, 24, 3), np.uint8)  # the photo's own size
        assert one.map.shape == (16, 16)
    proba = fitted.predict_proba([paths[0]], engine="keras")[0]
    assert by_path[0].probability == pytest.approx(proba.max(), abs=1e-5)
    json.dumps([item.to_dict() for item in by_path])


def test_a_class_by_name_or_number(fitted, folder):
    by_name = fitted.explain(folder / "red" / "001.png", target="blue", method="occlusion")[0]
    assert (by_name.label, by_name.target) == ("red", "blue")
    assert by_name.probability < 0.5
    by_number = fitted.explain(folder / "red" / "001.png", target=0, method="occlusion")[0]
    np.testing.assert_array_equal(by_name.raw, by_number.raw)
    for wrong in ("blu", 3, -1, True):
        with pytest.raises(ArgumentError, match="target must be one of the classes blue, green, red"):
            fitted.explain(folder / "red" / "001.png", target=wrong)


def test_overlays_are_strongest_where_the_map_is():
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    np.testing.assert_array_equal(overlay(image, heat), image)
    heat[2, 3] = 1
    drawn = overlay(image, heat, strength=1.0)
    assert tuple(drawn[2, 3]) == (215, 40, 30)
    assert (drawn.astype(int) != 100).any(axis=-1).sum() == 1
    assert overlay(np.full((8, 8, 1), 7.0), heat).shape == (8, 8, 3)


def test_examples_from_a_folder(fitted, folder):
    found = fitted.explain([folder / "red" / "001.png"], examples=3, references=folder)[0].examples
    assert found[0].path == folder / "red" / "001.png"
    assert found[0].similarity == pytest.approx(1, abs=1e-4)
    assert [example.label for example in found] == ["red"] * 3
    assert found[1].similarity >= found[2].similarity


def test_examples_need_references(folder):
    without = classification.fit(folder, model=tiny_body(), references=False)
    with pytest.raises(ArgumentError, match=r"Pass references="):
        without.explain([folder / "red" / "001.png"], examples=3)


def test_examples_that_the_classifier_holds(fitted):
    kept = fitted.references
    found = nearest(fitted._references(None), kept.features[[5, 12]], 2)
    assert [row[0].position for row in found] == [5, 12]
    assert found[1][0].thumbnail == kept.thumbnails[12]
    assert found[1][0].label == fitted.classes[kept.labels[12]]
    assert found[1][0].similarity > found[1][1].similarity
    with Image.open(io.BytesIO(kept.thumbnails[5])) as image:
        pixels = np.asarray(image.convert("RGB"))
    again = fitted.explain([pixels], examples=1)[0].examples[0]
    assert again.label == fitted.classes[kept.labels[5]]


def test_references_of_another_network():
    references = NeighbourSource(np.zeros((3, 4)), ("a", "a", "b"), (None, None, None))
    with pytest.raises(ArgumentError, match="features of this network"):
        nearest(references, np.zeros((1, 5)))


def test_the_command_writes_pictures_maps_and_json(fitted, folder, tmp_path, capsys):
    fitted.save(tmp_path / "c.resfit")
    (tmp_path / "bad.png").write_bytes(b"")

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run([str(argument) for argument in arguments])
        return stopped.value.code or 0, *capsys.readouterr()

    out = tmp_path / "why"
    images = (folder / "red" / "001.png", folder / "blue" / "001.png")
    code, text, errors = run("explain", tmp_path / "c.resfit", *images, "-o", out, "--json", "--examples", "2",
                             "--references", folder, "--method", "grad-cam++")  # fmt: skip
    assert (code, errors) == (0, "")
    rows = json.loads(text)
    assert rows == json.loads((out / "explanations.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == [
        "001-2.npy", "001-2.png", "001.npy", "001.png", "explanations.json",
    ]  # fmt: skip
    expected = fitted.explain(images, method="grad-cam++")
    for row, one in zip(rows, expected, strict=True):
        np.testing.assert_allclose(np.load(row["raw"]), one.raw, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(Image.open(row["picture"])), one.overlay)
        assert (row["method"], row["evidence"], row["empty"], row["note"]) == ("grad-cam++", "positive", False, None)
        assert (row["label"], row["probability"]) == (one.label, pytest.approx(one.probability))
        assert len(row["examples"]) == 2
    code, text, errors = run("explain", tmp_path / "c.resfit", images[0], tmp_path / "bad.png", "-o", out)
    assert code == 1
    assert "red" in text
    assert "empty file" in errors
    code, _, errors = run("explain", tmp_path / "c.resfit", images[0], "-o", out, "--method", "cam")
    assert code == 2
    assert "method must be one of" in errors
