"""Tables as people have them: encodings, delimiters, names of columns, where the files are, and what cannot be told."""

from __future__ import annotations

import codecs
import os

import pytest
from PIL import Image

from resfit.data.dataset import check_trainable, read_column, scan
from resfit.errors import DataError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def table(root, text, name="images.csv", encoding="utf-8"):
    path = root / name
    path.write_bytes(text.encode(encoding))
    return path


def found(images):
    """Returns the class of each file, by its path below the table's folder."""
    return {
        os.path.relpath(path, images.root): images.label_text(position) for position, path in enumerate(images.paths)
    }


AB = {"1.png": "a", "2.png": "b"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label\n1.png,a\n2.png,b\n", "utf-8-sig"),
        ("path,label\n1.png,a\n2.png,b\n", "utf-16"),
        ("path\tlabel\r\n1.png\ta\r\n2.png\tb\r\n", "utf-16-le"),  # without a mark
        ("path;label\n1.png;a\n2.png;b\n", "utf-16-be"),
        ("sep=;\npath;label\n1.png;a\n2.png;b\n", "utf-8-sig"),
        ('"sep=\t"\r\npath\tlabel\r\n1.png\ta\r\n2.png\tb\r\n', "utf-16"),
        ("path|label\n1.png|a\n2.png|b\n", "utf-8"),
        ("Path,LABEL\n1.png,a\n2.png,b\n", "utf-8"),
        ("1.png a\n2.png b\n", "utf-8"),
        ("1.png\ta\n2.png\tb\n", "utf-8"),
        ("a,1.png\nb,2.png\n", "utf-8"),
        ('path, label\n"1.png", "a"\n"2.png", "b"\n', "utf-8"),
        ('path ; label ; note\n"1.png" ; "a" ; "x; y" \n"2.png" ; "b" ; "said ""so"" ; "\n', "utf-8"),
    ],
)
def test_encodings_delimiters_and_headers(tmp_path, text, encoding):
    put(tmp_path, "1.png", "2.png")
    assert found(scan(table(tmp_path, text, encoding=encoding))) == AB


def test_utf16_has_its_mark(tmp_path):
    path = table(tmp_path, "path,label\n1.png,a\n", encoding="utf-16")
    assert path.read_bytes().startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("filename,class", "paths from column 'filename' (--path-column), labels from column 'class' (--label-column)"),
        ("Image,Target", "paths from column 'Image' (--path-column), labels from column 'Target'"),
        ("img_path,category", "paths from column 'img_path'"),
        ("file,species_of_it", "labels from column 'species_of_it'"),
        ("picture taken,dx", "paths from column 'picture taken'"),
    ],
)
def test_columns_are_known_by_what_they_hold_and_said(tmp_path, header, note):
    put(tmp_path, "1.png", "2.png")
    images = scan(table(tmp_path, f"{header}\n1.png,a\n2.png,b\n"))
    assert found(images) == AB
    assert note in images.notes[0]


def test_the_user_overrules_a_guess(tmp_path):
    put(tmp_path, "1.png", "2.png", "x/1.png", "x/2.png")
    path = table(tmp_path, "filename,crop,class,species\n1.png,x/1.png,a,c\n2.png,x/2.png,b,d\n")
    assert found(scan(path)) == AB
    assert found(scan(path, path_column="crop", label_column="species")) == {"x/1.png": "c", "x/2.png": "d"}
    bare = table(tmp_path, "1.png x/2.png a\n2.png x/1.png b\n", "bare.txt")
    assert found(scan(bare, path_column="2", label_column="3")) == {"x/2.png": "a", "x/1.png": "b"}
    assert read_column(path, "species") == {str(tmp_path / "1.png"): "c", str(tmp_path / "2.png"): "d"}


def test_an_index_column_is_no_label(tmp_path):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table(tmp_path, ",filename,breed,width\n0,1.png,a,640\n1,2.png,b,480\n2,3.png,a,640\n")
    assert found(scan(path)) == {"1.png": "a", "2.png": "b", "3.png": "a"}


def test_words_are_preferred_to_the_numbers_of_the_same_classes(tmp_path):
    put(tmp_path, "1.png", "2.png")
    images = scan(table(tmp_path, "image,class_id,class_name\n1.png,0,a\n2.png,1,b\n"))
    assert found(images) == AB
    assert any("'class_name' and not 'class_id'" in note for note in images.notes)


@pytest.mark.parametrize("ids", ["{}", "{}.png", "train/{}", "C:\\data\\train\\{}.png", "/kaggle/input/x/train/{}.png"])
def test_ids_and_paths_from_elsewhere_are_found_beside_the_table(tmp_path, ids):
    put(tmp_path, *(f"train/{number:03}.png" for number in range(6)), "test/000.png")
    rows = "".join(f"{ids.format(f'{number:03}')},{'ab'[number % 2]}\n" for number in range(6))
    images = scan(table(tmp_path, f"image_id,label\n{rows}", "train.csv"))
    assert found(images) == {f"train/{number:03}.png": "ab"[number % 2] for number in range(6)}
    assert any("--image-root" in note or "no ending" in note for note in images.notes)


def test_ids_that_are_in_two_folders_are_not_guessed(tmp_path):
    put(tmp_path, "left/1.png", "left/2.png", "right/1.png", "right/2.png")
    path = table(tmp_path, "id,label\n1,a\n2,b\n")
    with pytest.raises(DataError, match=r"left, right.*--image-root"):
        scan(path)
    assert found(scan(path, image_root=tmp_path / "right")) == {"right/1.png": "a", "right/2.png": "b"}


def test_addresses_backslashes_and_absolute_paths(tmp_path):
    put(tmp_path, "my x/1.png", "my x/2.png", "my x/3.png", "my x/4.PNG")
    rows = [
        f"{(tmp_path / 'my x/1.png').as_uri()},a",  # file:///…/my%20x/1.png
        "my x\\2.png,b",
        f"{tmp_path / 'my x/3.png'},a",
        "my x/4.png,b",
    ]
    images = scan(table(tmp_path, "path,label\n" + "\n".join(rows)))
    assert found(images) == {"my x/1.png": "a", "my x/2.png": "b", "my x/3.png": "a", "my x/4.PNG": "b"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}.jpg", r"36 of 36 files missing, such as .*0\.jpg.*With the ending '.png', 36 of 36"),
        ("gone/{}x.png", r"36 of 36 files missing.*images are called like 'store/0.png'.*--image-root"),
    ],
)
def test_all_rows_missing(tmp_path, name, message):
    put(tmp_path, *(f"{'' if name == '{}.jpg' else 'store/'}{number}.png" for number in range(36)))
    rows = "".join(f"{name.format(number)},{'ab'[number % 2]}\n" for number in range(36))
    with pytest.raises(DataError, match=message):
        scan(table(tmp_path, f"path,label\n{rows}"))


def test_where_all_files_are_broken_links_the_reason_comes_first(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"2 of 2 files unusable, such as .*1\.png': no such file"):
        check_trainable(scan(tmp_path))


def test_quantities_ask_for_what_is_not_there_yet(tmp_path):
    put(tmp_path, *(f"{number}.png" for number in range(30)))
    text = "image,price\n" + "".join(f"{number}.png,{number * 1.5}\n" for number in range(30))
    with pytest.raises(DataError, match=r"'price' .*30 different numbers.*--task regression\)\. If another"):
        scan(table(tmp_path, text))
    numbered = "image,age\n" + "".join(f"{number}.png,{number}\n" for number in range(30))
    with pytest.raises(DataError, match="regression"):
        scan(table(tmp_path, numbered))
    assert len(scan(table(tmp_path, numbered), label_column="age").classes) == 30
    few = "image,weight\n" + "".join(f"{number}.png,{number / 4 + 0.1}\n" for number in range(8))
    with pytest.raises(DataError, match="8 different numbers"):
        scan(table(tmp_path, few))
    classes = "image,class\n" + "".join(f"{number}.png,{number % 3}\n" for number in range(30))
    assert scan(table(tmp_path, classes)).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("column", "values"),
    [("set", ("training", "Test")), ("partition", ("TRAIN", "val")), ("is_valid", ("False", "True"))],
)
def test_parts_under_other_names(tmp_path, column, values):
    put(tmp_path, "1.png", "2.png", "3.png")
    images = scan(
        table(tmp_path, f"path,label,{column}\n1.png,a,{values[0]}\n2.png,b,{values[0]}\n3.png,a,{values[1]}\n")
    )
    assert images.splits == ("train", "train", {"Test": "test"}.get(values[1], "val"))


# several labels


def multilabel(images):
    return {
        path.name: set(filter(None, images.label_text(n).split(images.separator)))
        for n, path in enumerate(images.paths)
    }


BOTH = {"1.png": {"a", "b"}, "2.png": {"a", "b"}, "3.png": set(), "4.png": {"b"}}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("path,label\n1.png,a;b\n2.png,b; a\n3.png,\n4.png,b\n", {"label_separator": ";"}),
        ("path,label\n1.png,a\n2.png,b\n1.png,b\n2.png,a\n3.png,\n4.png,b\n", {"multilabel": True}),
        ("path,label\n1.png,a\n1.png,b\n2.png,a|b\n3.png,\n4.png,b\n4.png,b\n", {"label_separator": "|"}),
        ("filename, a, b\n1.png, 1, 1\n2.png, 1, 1\n3.png, 0, 0\n4.png, 0, 1\n", {}),
        ("image,a,b\n1.png,1.0,True\n2.png,1,1\n3.png,,\n4.png,no,yes\n", {}),
        ("image,tags\n1.png,\"['a', 'b']\"\n2.png,\"['b','a']\"\n3.png,[]\n4.png,['b']\n", {}),
    ],
)
def test_several_labels(tmp_path, text, options):
    """Whatever the form: the order changes nothing, rows of one image are merged, an empty cell is a negative."""
    put(tmp_path, "1.png", "2.png", "3.png", "4.png")
    images = scan(table(tmp_path, text), **options)
    assert images.classes == ("a", "b")
    assert images.multilabel
    assert multilabel(images) == BOTH
    assert images.counts() == {"a": 2, "b": 3}
    assert images.labelled.all()
    check_trainable(images)


def test_the_order_of_labels_does_not_change_the_fingerprint(tmp_path):
    put(tmp_path, "1.png", "2.png")
    one, other = (
        scan(table(tmp_path, f"path,label\n1.png,{labels}\n2.png,\n"), label_separator=";").fingerprint
        for labels in ("a;b", " b ;a")
    )
    assert one == other


def test_one_class_in_columns(tmp_path):
    put(tmp_path, "1.png", "2.png")
    path = table(tmp_path, "image,a,b\n1.png,1.0,0.0\n2.png,0.0,1.0\n")
    images = scan(path)
    assert not images.multilabel
    assert found(images) == AB
    assert "exactly one of these columns is 1" in images.notes[-1]
    assert scan(path, multilabel=True).multilabel


def test_a_combination_that_only_the_test_part_has(tmp_path):
    put(tmp_path, *(f"{number}.png" for number in range(5)))
    text = "path,label,split\n0.png,red,train\n1.png,small,train\n2.png,,train\n3.png,red|small,test\n4.png,,test\n"
    images = scan(table(tmp_path, text), label_separator="|")
    assert images.classes == ("red", "small")
    assert images.targets.astype(int).tolist() == [[1, 0], [0, 1], [0, 0], [1, 1], [0, 0]]
    with pytest.raises(DataError, match=r"each label must have training images.*none for: big"):
        scan(table(tmp_path, text.replace("red|small", "red|big")), label_separator="|")


def test_labels_in_one_text_are_suspected(tmp_path):
    put(tmp_path, *(f"{number}.png" for number in range(4)))
    images = scan(table(tmp_path, "path,label\n0.png,red|small\n1.png,red|big\n2.png,blue|small\n3.png,blue|big\n"))
    assert "--label-separator '|'" in images.notes[-1]
    assert not images.multilabel


def test_two_labels_of_an_image_are_refused_with_the_way_out(tmp_path):
    put(tmp_path, "1.png")
    with pytest.raises(DataError, match="--multilabel"):
        scan(table(tmp_path, "path,label\n1.png,a\n1.png,b\n"))
    with pytest.raises(DataError, match="--label-separator"):
        scan(table(tmp_path, "path,label\n1.png,\n"))


def test_addresses_in_the_net_are_named(tmp_path):
    with pytest.raises(DataError, match=r"Received: addresses, such as 'https://x\.org/1\.png'"):
        scan(table(tmp_path, "path,label\nhttps://x.org/1.png,a\nhttps://x.org/2.png,b\n"))


def test_ids_that_are_spread_over_folders(tmp_path):
    """Each file is in one of two folders, as in HAM10000."""
    put(tmp_path, "part_1/ISIC_1.png", "part_2/ISIC_2.png", "part_2/ISIC_3.png")
    rows = "HAM_1,ISIC_1,bkl,histo\nHAM_2,ISIC_2,nv,histo\nHAM_3,ISIC_3,nv,histo\n"
    images = scan(table(tmp_path, f"lesion_id,image_id,dx,dx_type\n{rows}", "metadata.csv"))
    assert found(images) == {"part_1/ISIC_1.png": "bkl", "part_2/ISIC_2.png": "nv", "part_2/ISIC_3.png": "nv"}
    assert "paths start in 'part_1, part_2'" in images.notes[-1]


def test_lists_of_ids_without_a_header(tmp_path):
    put(tmp_path, "JPEGImages/000001.png", "JPEGImages/000002.png")
    path = tmp_path / "ImageSets" / "Main" / "cat_train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("000001  1\n000002 -1\n")
    images = scan(path)
    assert [images.label_text(row) for row in range(2)] == ["1", "-1"]
    assert [image.name for image in images.paths] == ["000001.png", "000002.png"]


def test_rows_that_name_no_file_are_listed(tmp_path):
    put(tmp_path, "1.png")
    (tmp_path / "folder").mkdir()
    rows = ["1.png,a", f"{'x' * 5000},b", "folder,b", "/,c", "..,d", "file://]/x.png,a"]
    path = table(tmp_path, "path,label\n" + "\n".join(rows))
    images = scan(path)
    assert len(images) == 1
    reasons = [item.reason for item in images.skipped]
    assert reasons[1:] == ["not a regular file"] * 3 + ["no such file"]
    assert reasons[0].startswith("cannot be read") or reasons[0] == "no such file"


def test_decimal_commas_of_spreadsheets(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    text = "\ufeffBild;Radius mm;Jahr\r\na.png;15,65;2001\r\nb.png;-0,5;2002\r\nc.png;8;2003\r\n"
    images = scan(table(tmp_path, text), numbers=True, label_column="Radius mm,Jahr")
    assert images.values.tolist() == [[15.65, 2001], [-0.5, 2002], [8, 2003]]
    assert any("'Radius mm' are decimal points" in note for note in images.notes)
    quoted = 'image,price\na.png,"0,25"\nb.png,"1,5"\nc.png,"2"\n'
    assert scan(table(tmp_path, quoted), numbers=True).values.ravel().tolist() == [0.25, 1.5, 2]


@pytest.mark.parametrize("cells", [("1,234", "12,500", "7"), ("1.234,5", "2,5", "3"), ("1,5", "much", "2")])
def test_numbers_with_two_readings_are_refused_with_the_way_out(tmp_path, cells):
    put(tmp_path, "a.png", "b.png", "c.png")
    rows = "".join(f"{name}.png;{cell}\n" for name, cell in zip("abc", cells, strict=True))
    with pytest.raises(DataError, match="decimal point and without separators of thousands"):
        scan(table(tmp_path, f"image;price\n{rows}"), numbers=True, label_column="price")
