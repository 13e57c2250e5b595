"""Finding images: layouts, tables, odd names, and what is refused."""

from __future__ import annotations

import os
import unicodedata

import pytest
from PIL import Image

from resfit.data.dataset import check_trainable, scan, scan_images
from resfit.errors import DataError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def relative(images):
    return [path.relative_to(images.root).as_posix() for path in images.paths]


def test_class_folders(tmp_path):
    put(tmp_path, "b/2.png", "b/1.PNG", "a/deep/er/x.jpg", "a/y.png", "a/.hidden.png", "__MACOSX/a/z.png", ".git/q.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "Thumbs.db").write_text("")
    images = scan(tmp_path)
    assert relative(images) == ["a/y.png", "a/deep/er/x.jpg", "b/1.PNG", "b/2.png"]
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.counts() == {"a": 2, "b": 2}
    assert images.splits == (None,) * 4


def test_split_folders(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "valid/a/1.png", "test/b/1.png", "extra/a/1.png")
    images = scan(tmp_path)
    assert list(zip(relative(images), images.splits, strict=True)) == [
        ("test/b/1.png", "test"),
        ("train/a/1.png", "train"),
        ("train/b/1.png", "train"),
        ("valid/a/1.png", "val"),
    ]
    assert "extra" in images.warnings[0]


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, "train/1.png", "plane/1.png")
    assert scan(tmp_path).classes == ("plane", "train")


def test_test_images_without_class_folders_do_not_make_the_parts_classes(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/loose.png", "test/1.png", "test/2.png")
    images = scan(tmp_path)
    assert relative(images) == ["train/a/1.png", "train/b/1.png"]
    assert images.classes == ("a", "b")
    assert images.warnings == (
        "folders without class folders inside are left out: test",
        "1 image outside the class folders left out",
    )


def test_a_folder_called_train_may_be_neither_guessed_a_part_nor_a_class(tmp_path):
    put(tmp_path, "train/steam/1.png", "plane/1.png")
    with pytest.raises(DataError, match=r"may be a part or a class, beside plane"):
        scan(tmp_path)


def test_test_images_alone_are_for_measuring(tmp_path):
    put(tmp_path, *(f"test/{name}/{number}.png" for name in "ab" for number in range(3)))
    images = scan(tmp_path)
    assert images.classes == ("a", "b")
    assert set(images.splits) == {"test"}
    with pytest.raises(DataError, match=r"training images are needed.*test alone"):
        check_trainable(images)


def test_rows_without_a_split_are_for_training(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    images = scan(table(tmp_path, "path,label,split\n1.png,a,train\n2.png,b,\n3.png,a,test\n"))
    assert images.splits == ("train", None, "test")
    with pytest.raises(DataError, match="Received none for: c"):
        scan(table(tmp_path, "path,label,split\n1.png,a,\n2.png,b,\n3.png,c,test\n"))


def test_a_class_that_only_the_test_images_have_is_refused(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png")
    with pytest.raises(DataError, match=r"each class must have training .*none for: c, with .* or leave them out"):
        scan(tmp_path)


@pytest.mark.parametrize(
    "name", ["with space.png", "new\nline.png", "日本語.png", "ä ö ü.png", "per%cent.png", "a,b;c'\".png"]
)
def test_names_of_every_kind(tmp_path, name):
    put(tmp_path, f"ünïcode klass/{name}", f"other/{name}")
    images = scan(tmp_path)
    assert [path.name for path in images.paths] == [name, name]
    assert all(path.read_bytes() for path in images.paths)


def test_a_name_that_is_no_text(tmp_path):
    put(tmp_path, "a/1.png")
    os.rename(tmp_path / "a" / "1.png", os.fsencode(tmp_path / "a") + b"/\xff\xfe.png")
    images = scan(tmp_path)
    assert [os.fsencode(path.name) for path in images.paths] == [b"\xff\xfe.png"]
    assert len(images.fingerprint) == 64


def test_loops_and_links(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "elsewhere/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # the images of b are not of class a
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "b" / "self.png").symlink_to(tmp_path / "b" / "self.png")
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "b" / "linked.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    images = scan(tmp_path)
    assert relative(images) == ["a/1.png", "b/1.png", "b/linked.png", "elsewhere/2.png"]
    assert sorted(item.path.name for item in images.skipped) == ["gone.png", "self.png"]
    assert "3 links" in images.warnings[-1]


def test_a_linked_folder_brings_no_image_in_twice(tmp_path):
    put(tmp_path, "a/first/0.png", "a/real/deep/1.png", "b/1.png", "store/c/9.png")
    (tmp_path / "a" / "alias").symlink_to(tmp_path / "a" / "real")  # sorts before what it leads to
    (tmp_path / "a" / "first" / "alias").symlink_to(tmp_path / "a" / "real")
    (tmp_path / "a" / "far").symlink_to(tmp_path / "store" / "c")
    assert relative(scan(tmp_path))[:3] == ["a/first/0.png", "a/real/deep/1.png", "a/far/9.png"]


def test_folders_that_link_to_each_other_end(tmp_path):
    """Twelve folders, each with links to all others: 12! ways through them."""
    for number in range(12):
        put(tmp_path, f"a/{number}/x.png")
        for other in range(12):
            (tmp_path / "a" / str(number) / f"to{other}").symlink_to(tmp_path / "a" / str(other))
    put(tmp_path, "b/1.png")
    assert scan(tmp_path).counts() == {"a": 12, "b": 1}


def test_what_is_no_regular_file_is_listed(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "b" / "folder.jpg").mkdir()
    images = scan(tmp_path)
    assert [(item.path.name, item.reason) for item in images.skipped] == [
        ("pipe.jpg", "not a regular file"),
        ("folder.jpg", "not a regular file"),
    ]


def test_layouts_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scan(tmp_path / "missing")
    put(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=r"one folder for each class.*2 loose images"):
        scan(tmp_path)
    with pytest.raises(DataError, match="Received the file"):
        scan(tmp_path / "1.png")


def test_classes_that_cannot_be_trained(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    (tmp_path / "empty").mkdir()
    images = scan(tmp_path)
    assert images.warnings == ("the class folder 'empty' has no images",)
    with pytest.raises(DataError, match="at least two classes"):
        check_trainable(images)
    put(tmp_path, "b/1.png")
    with pytest.raises(DataError, match=r"at least 3 images.*b \(1\)"):
        check_trainable(scan(tmp_path))
    put(tmp_path, "b/2.png", "b/3.png")
    check_trainable(scan(tmp_path))


@pytest.mark.parametrize("twin", ["CAT", " cat", "cat ", unicodedata.normalize("NFD", "café")])
def test_labels_that_look_alike_are_refused(tmp_path, twin):
    put(tmp_path, "cat/1.png", f"{twin}/1.png", "café/1.png")
    with pytest.raises(DataError, match="more than case and spaces"):
        scan(tmp_path)


def table(tmp_path, text, name="images.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_table(tmp_path):
    put(tmp_path, "x/1.png", "x/2.png", "x/3.png")
    path = table(
        tmp_path,
        "path,label,split,group\nx/2.png,b,test,p2\nx/1.png,a,train,p1\nx/gone.png,a,,\nx/2.png,b,test,p2\nx/3.png,b,train,\n",
    )
    images = scan(path)
    assert relative(images) == ["x/2.png", "x/1.png", "x/3.png"]
    assert images.labels.tolist() == [1, 0, 1]
    assert images.splits == ("test", "train", "train")
    assert images.groups == ("p2", "p1", None)
    assert [(item.path.name, item.reason) for item in images.skipped] == [("gone.png", "no such file")]
    assert images.warnings == ("1 row repeats an earlier one",)


def test_table_with_byte_order_mark_semicolons_and_other_columns(tmp_path):
    put(tmp_path, "1.png", "2.png")
    path = table(tmp_path, "\ufefffile;kind;age\r\n1.png;a;3\r\n2.png;b;4\r\n")
    assert scan(path, path_column="file", label_column="kind").classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,site\n1.png,a\n", "must have a column with the labels"),
        (
            "path,age,height of it\n1.png,3,7\n",
            r"'age' \(1 different\), 'height of it' \(1 different\).*--label-column",
        ),
        ("path,label\n1.png,\n", "line 2 without 'label'"),
        ("path,label\n1.png,a\n1.png,b\n", "one label, split and group"),
        ("path,label,split\n1.png,a,tset\n", "split must be train, val or test"),
        ("path,label\n1.png,a,b,c\n", "as many fields"),
        ("path,label\n", "rows below its header"),
        ("", "rows below its header"),
        ("path,label\n1.png\0,a\n", "zero bytes"),
        ('path,label\n"1.png,a\n', "must be a CSV file"),
    ],
)
def test_tables_that_are_wrong(tmp_path, text, message):
    put(tmp_path, "1.png")
    with pytest.raises(DataError, match=message):
        scan(table(tmp_path, text))


def test_a_column_that_is_named_must_be_there(tmp_path):
    put(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"must have a column 'label'.*Did you mean 'lable'"):
        scan(table(tmp_path, "path,lable\n1.png,a\n"), label_column="label")
    assert scan(table(tmp_path, "path,lable\n1.png,a\n"), label_column="LABLE").classes == ("a",)


def test_a_table_in_another_encoding(tmp_path):
    with pytest.raises(DataError, match="UTF-8"):
        scan(table(tmp_path, "path,label\nä.png,ü\n", encoding="latin-1"))


def test_fingerprint_follows_what_matters(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    first = scan(tmp_path).fingerprint
    assert scan(tmp_path).fingerprint == first
    (tmp_path / "a" / "1.png").write_bytes(b"other")
    second = scan(tmp_path).fingerprint
    os.rename(tmp_path / "b" / "1.png", tmp_path / "a" / "2.png")
    assert len({first, second, scan(tmp_path).fingerprint}) == 3


def test_fingerprint_of_a_subset_is_its_own(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    images = scan(tmp_path)
    assert images.subset([0, 1, 2]).fingerprint == images.fingerprint
    assert len({images.fingerprint, images.subset([0, 1]).fingerprint, images.subset([1, 0]).fingerprint}) == 3


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="Received the file"):
        scan(tmp_path / "rows.csv")


def test_unlabelled_files_and_folders(tmp_path):
    put(tmp_path, "in/1.png", "in/sub/2.png", "odd.dat")
    images = scan_images([tmp_path / "odd.dat", tmp_path / "in"])
    assert [path.name for path in images.paths] == ["odd.dat", "1.png", "2.png"]
    assert images.labels.tolist() == [-1, -1, -1]
    with pytest.raises(DataError, match="does not exist"):
        scan_images([tmp_path / "missing.png"])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no image files"):
        scan_images([tmp_path / "none"])


def test_subset(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    part = scan(tmp_path).subset([2, 0])
    assert [path.name for path in part.paths] == ["1.png", "1.png"]
    assert part.labels.tolist() == [1, 0]
    assert part.classes == ("a", "b")
