"""What folders mean: classes, parts, wrappers; what is refused, and how the options settle it; no file in silence."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from resfit.data import folders, walk
from resfit.data.dataset import LayoutError, check_trainable, scan, scan_images
from resfit.errors import DataError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def found(images):
    """Returns part and class of each file by its path."""
    names = [path.relative_to(images.root).as_posix() for path in images.paths]
    return {name: (images.splits[row], images.label_text(row)) for row, name in enumerate(names)}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(("train", "train"), ("Training", "train"), ("seg_train", "train"), ("train2017", "train")),
        *(("TrainSet", "train"), ("images-train", "train"), ("1_train", "train")),
        *(("val", "val"), ("Valid", "val"), ("dev", "val"), ("validation_set", "val")),
        *(("test1", "test"), ("TESTING", "test"), ("hold-out", "test"), ("holdout", "test"), ("eval", "test")),
        *(("train_station", None), ("testosterone", None), ("fold_0", None), ("0", None), ("train_test", None)),
    ],
)
def test_names_of_parts(name, part):
    assert folders.part_of(name) == part


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("Training", "Testing"),
        ("train2017", "eval2017"),
        ("TRAIN/x", "Test"),
    ],
)
def test_parts_under_other_names_and_wrapped(tmp_path, train, test):
    put(tmp_path, *(f"{part}/{name}/{n}.png" for part in (train, test) for name in "ab" for n in range(3)))
    images = scan(tmp_path)
    assert images.classes == ("a", "b")
    assert found(images)[f"{train}/a/0.png"] == ("train", "a")
    assert found(images)[f"{test}/b/2.png"] == ("test", "b")
    assert len(images) == 12
    assert any("is read as the train part" in note or "is entered" in note for note in images.notes)
    check_trainable(images)


@pytest.mark.parametrize("wrapper", ["PetImages", "archive/PetImages", "data"])
def test_a_wrapper_is_entered_and_said(tmp_path, wrapper):
    put(tmp_path, f"{wrapper}/Cat/0.png", f"{wrapper}/Dog/0.png")
    (tmp_path / "readme.txt").write_text("cats and dogs")
    images = scan(tmp_path)
    assert images.classes == ("Cat", "Dog")
    assert images.notes == (f"the images are in {wrapper}/: it is entered, and is no class",)


def test_a_wrapper_around_parts(tmp_path):
    put(tmp_path, *(f"set/{part}/{name}/0.png" for part in ("train", "val") for name in "ab"))
    assert found(scan(tmp_path))["set/val/a/0.png"] == ("val", "a")


def test_one_part_is_no_wrapper(tmp_path):
    put(tmp_path, "test/a/0.png", "test/b/0.png")
    assert set(scan(tmp_path).splits) == {"test"}


def test_dogs_and_cats(tmp_path):
    """Parts without class folders are no classes; the labels are in the names of the files."""
    put(tmp_path, *(f"train/{name}.{n}.png" for name in ("cat", "dog") for n in range(4)), "test1/1.png", "test1/2.png")
    with pytest.raises(LayoutError, match=r"test1, train are parts.*--label-from '\{label\}\.\{number\}\.\*'"):
        scan(tmp_path)
    images = scan(tmp_path, label_from="{label}.{number}.*")
    assert images.counts() == {"cat": 4, "dog": 4}
    assert set(images.splits) == {"train"}
    assert [item.path.name for item in images.skipped] == ["1.png", "2.png"]
    assert "does not match label_from" in images.skipped[0].reason
    only = scan(tmp_path, label_from="{label}.{number}.*", train="train", test=tmp_path / "test1")
    assert only.counts() == {"cat": 4, "dog": 4}


@pytest.mark.parametrize("names", [("fold_0", "fold_1", "fold_2"), ("Fold1", "Fold2"), ("cv-1", "cv-2", "cv-3")])
@pytest.mark.parametrize("inner", ["{}/a/0.png", "{}/0.png"])
def test_folds_are_no_classes(tmp_path, names, inner):
    put(tmp_path, *(inner.format(name) for name in names), *(inner.format(name).replace("a/", "b/") for name in names))
    with pytest.raises(LayoutError, match=f"folds of a cross-validation.*--test {names[-1]}"):
        scan(tmp_path)
    if "a/" in inner:
        images = scan(tmp_path, test=names[-1])
        assert images.classes == ("a", "b")
        assert [images.splits.count(part) for part in ("train", "test")] == [2 * len(names) - 2, 2]


def test_the_same_folders_in_every_class_may_mean_two_things(tmp_path):
    put(tmp_path, *(f"{site}/{name}/0.png" for site in ("berlin", "rome") for name in ("cat", "dog")))
    with pytest.raises(LayoutError, match=r"berlin, rome has the same folders inside \(cat, dog\).*--label-from"):
        scan(tmp_path)
    assert scan(tmp_path, label_from="{label}/*").classes == ("cat", "dog")
    assert scan(tmp_path, label_from="{label}/*/*").classes == ("berlin", "rome")


def test_folders_inside_classes_that_differ_or_are_one_are_part_of_them(tmp_path):
    put(tmp_path, "cat/images/0.png", "dog/images/0.png")
    assert scan(tmp_path).classes == ("cat", "dog")
    put(tmp_path, "cat/left/1.png", "dog/far/1.png", "dog/0.png")
    assert scan(tmp_path).counts() == {"cat": 2, "dog": 3}


def test_classes_with_the_parts_inside(tmp_path):
    put(tmp_path, *(f"{name}/{part}/0.png" for name in ("cat", "dog") for part in ("train", "test")))
    images = scan(tmp_path)
    assert found(images)["dog/test/0.png"] == ("test", "dog")
    assert images.classes == ("cat", "dog")


@pytest.mark.parametrize("names", [("cat_train", "cat_test", "dog_train", "dog_test"), ("train_x", "test_x")])
def test_parts_within_names_are_refused(tmp_path, names):
    put(tmp_path, *(f"{name}/0.png" for name in names))
    with pytest.raises(LayoutError, match="names a part of a split"):
        scan(tmp_path)
    pattern = "{label}_{split}/*" if names[0].startswith("cat") else "{split}_{label}/*"
    assert set(scan(tmp_path, label_from=pattern).splits) == {"train", "test"}


def test_all_names_are_parts(tmp_path):
    put(tmp_path, "train/0.png", "Test/0.png", "dev2/0.png")
    with pytest.raises(LayoutError, match="are parts of a split and no classes"):
        scan(tmp_path)


def test_a_table_beside_flat_parts_is_named(tmp_path):
    put(tmp_path, "train/0.png", "test/0.png")
    (tmp_path / "labels.csv").write_text("id,label\n0,a\n")
    with pytest.raises(LayoutError, match=r"the table that holds the labels, such as labels\.csv"):
        scan(tmp_path)


def test_roboflow_tables_in_each_part(tmp_path):
    """One row a file, columns of 0 and 1 with spaces: several labels, though the small part has one each."""
    for part, rows in (("train", ("1, 1", "0, 1", "0, 0", "1, 0")), ("valid", ("1, 0",)), ("test", ("0, 1", "1, 1"))):
        put(tmp_path, *(f"{part}/{n}_png.rf.png" for n in range(len(rows))))
        text = "filename, cat, dog\n" + "".join(f"{n}_png.rf.png, {row}\n" for n, row in enumerate(rows))
        (tmp_path / part / "_classes.csv").write_text(text)
    (tmp_path / "README.roboflow.txt").write_text("exported")
    images = scan(tmp_path)
    assert images.multilabel
    assert images.classes == ("cat", "dog")
    assert images.counts() == {"cat": 4, "dog": 4}
    assert [images.splits.count(part) for part in ("train", "val", "test")] == [4, 1, 2]
    assert found(images)["train/2_png.rf.png"] == ("train", "")
    assert len(images.ignored) == 4  # the tables and the readme
    one = scan(tmp_path / "train")
    assert one.counts() == {"cat": 2, "dog": 2}
    assert "_classes.csv" in one.notes[0]


def test_stated_parts_beside_classes(tmp_path):
    put(tmp_path, "a/0.png", "b/0.png", "held/a/1.png", "held/b/1.png")
    images = scan(tmp_path, test="held")
    assert found(images) == {
        "a/0.png": ("train", "a"),
        "b/0.png": ("train", "b"),
        "held/a/1.png": ("test", "a"),
        "held/b/1.png": ("test", "b"),
    }
    with pytest.raises(DataError, match="test must be a folder or a table"):
        scan(tmp_path, test="missing")


def test_tables_as_parts(tmp_path):
    put(tmp_path, *(f"{n}.png" for n in range(4)))
    (tmp_path / "learn.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    (tmp_path / "measure.csv").write_text("path,label\n2.png,a\n3.png,b\n")
    images = scan(tmp_path / "learn.csv", test=tmp_path / "measure.csv")
    assert images.splits == ("train", "train", "test", "test")
    assert scan(tmp_path, train="learn.csv", test="measure.csv").splits == images.splits


@pytest.mark.parametrize(
    ("pattern", "name", "label"),
    [
        ("{label}_{number}.*", "great_dane_12.jpg", "great_dane"),
        ("{label}_*", "great_dane_12.jpg", "great"),
        ("*_{label}.png", "x_7_cat.png", "cat"),
        ("{group}-{label}-?.png", "p1-cat-7.png", "cat"),
        ("{label}/*", "a/b/c.png", "b"),
    ],
)
def test_patterns(tmp_path, pattern, name, label):
    put(tmp_path, name, "other_1.zzz.png")
    images = scan(tmp_path, label_from=pattern)
    assert {path.name: images.label_text(n) for n, path in enumerate(images.paths)}[name.rsplit("/", 1)[-1]] == label


@pytest.mark.parametrize("pattern", ["*.png", "{label}_{x}", "{label}{label}"])
def test_patterns_that_are_wrong(tmp_path, pattern):
    put(tmp_path, "a_1.png")
    with pytest.raises(DataError, match=r"must have \{label\} once"):
        scan(tmp_path, label_from=pattern)


# files passed over


def encoded(kind):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(data, kind)
    return data.getvalue()


def test_images_are_known_by_their_content_and_every_file_counts(tmp_path):
    put(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(12)))
    other = {
        "1.jp2": "JPEG2000", "2": "PNG", "3": "JPEG", "4.png.1": "PNG", "5.jpg~": "JPEG", "6.img": "BMP",
        "7.dat": "WEBP", "8.txt": "GIF", "9.JPG_large": "JPEG", "10.x": "TIFF", "11.y": "PPM",
    }  # fmt: skip
    for name, kind in other.items():
        (tmp_path / "a" / name).write_bytes(encoded(kind))
    texts = {
        "notes.txt": b"hello",
        "data.json": b"{}",
        "BMW": b"BM is no bitmap",
        "P3 list": b"P3 is a letter",
        "empty": b"",
    }
    for name, data in texts.items():
        (tmp_path / "b" / name).write_bytes(data)
    (tmp_path / "b" / "raw.NEF").write_bytes(encoded("TIFF"))
    (tmp_path / "b" / "drawing.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "b" / ".hidden.png").write_bytes(encoded("PNG"))
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "LICENSE").write_text("MIT")
    os.mkfifo(tmp_path / "b" / "pipe")
    images = scan(tmp_path)
    assert images.counts() == {"a": 23, "b": 13}  # the drawing is listed when it is decoded
    assert [(item.path.name, item.reason.split(";")[0]) for item in images.skipped] == [
        ("pipe", "not a regular file"),
        ("raw.NEF", "raw file of a camera"),
    ]
    assert images.ignored_counts() == {walk.NO_IMAGE: 5, walk.HIDDEN: 2, walk.SYSTEM: 1, walk.OUTSIDE: 1}
    everything = sum(len(files) for _, _, files in os.walk(tmp_path))  # .git, with one file in it, counts as one
    assert len(images) + len(images.skipped) + len(images.ignored) == everything


def test_files_in_folders_that_are_left_out_count(tmp_path):
    put(tmp_path, "train/a/0.png", "train/b/0.png", "train/loose.png", "test/0.png", "test/1.png", "extra/x/0.png")
    images = scan(tmp_path)
    assert len(images) == 2
    assert images.ignored_counts() == {walk.OUTSIDE: 4}


def test_known_endings_are_not_opened(tmp_path, monkeypatch):
    put(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(5)))
    (tmp_path / "a" / "none").write_bytes(encoded("PNG"))
    opened = []
    look = walk.decode.is_picture
    monkeypatch.setattr(walk.decode, "is_picture", lambda data: opened.append(data[:4]) or look(data))
    assert len(scan(tmp_path)) == 11
    assert set(opened) == {b"\x89PNG"}
    assert len(opened) <= 3  # once to see what the folder is, once to collect


def test_unlabelled_folders_tell_what_they_leave_out(tmp_path):
    put(tmp_path, "0.png", "deep/1.png")
    (tmp_path / "2").write_bytes(encoded("JPEG"))
    (tmp_path / "list.json").write_text("{}")
    images = scan_images([tmp_path])
    assert sorted(path.name for path in images.paths) == ["0.png", "1.png", "2"]
    assert images.ignored_counts() == {walk.NO_IMAGE: 1}


@pytest.mark.parametrize("names", [("cat.{}.jpg", "dog.{}.jpg"), ("a_b_{}.png", "c_{}.png"), ("{}_x.png", "{}_y.png")])
def test_a_pattern_is_suggested_that_works(tmp_path, names):
    put(tmp_path, *(name.format(number) for name in names for number in range(5)))
    with pytest.raises(LayoutError, match="10 loose images") as caught:
        scan(tmp_path)
    pattern = str(caught.value).split("--label-from '")[1].split("'")[0]
    assert sorted(scan(tmp_path, label_from=pattern).counts().values()) == [5, 5]


def test_folders_of_other_tasks_are_no_classes(tmp_path):
    put(tmp_path / "seg", *(f"{part}/{kind}/0.png" for part in ("train", "val") for kind in ("images", "masks")))
    with pytest.raises(LayoutError, match="train, val are parts of a split and no classes"):
        scan(tmp_path / "seg")
    put(tmp_path / "voc", "JPEGImages/0.png", "SegmentationClass/0.png")
    with pytest.raises(LayoutError, match="not like classes"):
        scan(tmp_path / "voc")
    put(tmp_path / "yolo", "train/images/0.png", "val/images/0.png")
    (tmp_path / "yolo" / "train" / "labels").mkdir()
    (tmp_path / "yolo" / "train" / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(LayoutError, match="parts of a split and no classes"):
        scan(tmp_path / "yolo")


def test_unlabelled_test_images_in_a_wrapper_are_left_out(tmp_path):
    put(tmp_path, "train/train/a/0.png", "train/train/b/0.png", "test/test/0.png")
    images = scan(tmp_path)
    assert images.classes == ("a", "b")
    assert any("without class folders inside are left out: test" in text for text in images.warnings)


def test_a_table_beside_one_folder_of_images(tmp_path):
    put(tmp_path, "images/0.png", "images/1.png")
    (tmp_path / "train.csv").write_text("image_id,label\n0,a\n1,b\n")
    images = scan(tmp_path)
    assert found(images) == {"images/0.png": (None, "a"), "images/1.png": (None, "b")}
    assert "labels are read from train.csv" in images.notes
    (tmp_path / "a_submission.csv").write_text("image_id,label\n0,a\n")
    with pytest.raises(LayoutError, match=r"the table that holds the labels, such as train\.csv"):
        scan(tmp_path)
